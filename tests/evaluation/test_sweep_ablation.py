"""The ablation of a sweep: what spends its budget, and what is written there, by hooks and autograd of this test."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from instances import without_shape_checks

import odesteer_tl as ot
from odesteer_tl.evaluation.sweeps.ablated import CONTRASTS, ENTRIES, Ablated
from odesteer_tl.evaluation.sweeps.rows import SweptRow
from odesteer_tl.flows.features import Linear

BUDGET, TOKENS, LAYER = 0.1, 4, 2
METHODS = {
    "linear, one step": (1, lambda acts: ot.StepODESteer.fit(acts, features=Linear())),
    "linear, ten steps": (10, lambda acts: ot.ODESteer.fit(acts, features=Linear())),
    "nonlinear, one step": (1, ot.StepODESteer.fit),
    "nonlinear, ten steps": (10, ot.ODESteer.fit),
}


def words(texts):
    """A score that is not a share: the mean number of different letters."""
    return sum(len(set(text)) for text in texts) / len(texts)


@pytest.fixture(scope="module")
def data(half):
    return SimpleNamespace(
        desired=half.desired[:12], undesired=half.undesired[:12], prompts=half.prompts[:2],
        validation_prompts=half.validation_prompts[:3],
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(half, data, tmp_path_factory):
    """A sweep, the same with its ablation added in the same folder, and once more; what the two said."""
    out, said, again = tmp_path_factory.mktemp("ablation") / "cells", [], []
    asked: dict[str, Any] = dict(
        layers=[LAYER], strengths=(0.1,), primary="words", metrics={"words": words}, keep=1, seeds=(0, 1), samples=1,
        max_new_tokens=TOKENS, out=out,
    )  # fmt: skip
    with without_shape_checks():
        plain = ot.sweep(half.model, data, {"CAA": ot.CAA}, **asked)
        plan = ot.sweep(half.model, data, {"CAA": ot.CAA}, **asked, ablation=True, kl=BUDGET, dry_run=True)
        found = ot.sweep(half.model, data, {"CAA": ot.CAA}, **asked, ablation=True, progress=said.append)
        resumed = ot.sweep(half.model, data, {"CAA": ot.CAA}, **asked, ablation=True, progress=again.append)
    return plain, plan, found, resumed, said, again


def after(model, text, method, steps, relative_T):
    """Log-probabilities after each token from the prompt's last on, steered by a plain hook: Euler steps of T/steps
    along ∇h/‖∇h‖ by autograd, T a part of each activation's own norm."""
    tokens, start = text

    def climb(resid, hook):
        if relative_T:
            a = resid[:, start - 1 :].detach().clone()
            step = relative_T * a.norm(dim=-1, keepdim=True) / steps
            for _ in range(steps):
                with torch.enable_grad():
                    at = a.clone().requires_grad_()
                    (gradient,) = torch.autograd.grad(method.barrier.value(at[0]).sum(), at)
                a = a + step * gradient / gradient.norm(dim=-1, keepdim=True)
            resid[:, start - 1 :] = a
        return resid

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{LAYER}.hook_resid_post", climb)])
    return logits[0, start - 1 :].double().log_softmax(-1)


def test_every_row_spends_the_budget_by_a_plain_hook_and_one_linear_step_does_what_ten_do(half, data, swept):
    model, found = half.model, swept[2]
    acts = ot.collect(model, data.desired, data.undesired, layer=LAYER)
    texts = []
    for prompt in data.validation_prompts:
        start = model.to_tokens(prompt).shape[1]
        texts.append((ot.generate(model, [prompt], max_new_tokens=TOKENS).tokens, start))

    def between(p, q):
        each = [(one.exp() * (one - other)).sum(-1) for one, other in zip(p, q, strict=True)]
        return float(torch.cat(each).mean())

    unsteered = [after(model, text, None, 1, 0.0) for text in texts]
    steered = {}
    for row in found.ablation.rows:
        steps, fit = METHODS[row.method]
        assert row.unit == "relative_T" and row.value == row.strength and not row.stop
        steered[row.method] = [after(model, text, fit(acts), steps, row.value) for text in texts]
        cost = between(unsteered, steered[row.method])
        assert cost == pytest.approx(BUDGET, rel=0.05)
        assert row.measures["kl"] == pytest.approx(cost, rel=2e-3)
    # along a great circle or along its tangent: a difference of second order, here 3e-5 nats
    alike = between(steered["linear, one step"], steered["linear, ten steps"])
    assert 0 < alike < BUDGET / 1000
    assert between(steered["linear, ten steps"], steered["nonlinear, ten steps"]) > 10 * alike


def test_the_scores_are_those_of_texts_that_the_methods_write_at_that_strength(half, data, swept):
    """By `generate`, with fits of this test, seed by seed."""
    acts = ot.collect(half.model, data.desired, data.undesired, layer=LAYER)
    for row in swept[2].ablation.rows:
        for seed, scores in enumerate(row.scores):
            out = ot.generate(
                half.model, data.prompts, METHODS[row.method][1](acts), relative_T=row.value, max_new_tokens=TOKENS,
                do_sample=True, temperature=0.7, top_p=0.9, seed=seed,
            )  # fmt: skip
            assert scores == [words([text]) for text in out.continuations]


def test_the_ablation_goes_on_in_the_folder_of_its_sweep_and_resumes(swept):
    plain, plan, found, resumed, said, again = swept
    assert plain.ablation is None and plan == found.plan
    assert plan.cells == plain.plan.cells + 2 * 4 and str(plan).count("0.1 nats |") == 4
    assert "spends 0.1 nats of KL per token" in str(plan) and "Ablation" not in str(plain.plan)
    assert found.rows == plain.rows and str(found).startswith(str(plain))
    assert (
        len([line for line in said if ": cell " in line]) == 2 * 4
        and "0.1 nats, seed 1: cell 12 of at most 12" in said[-1]
    )
    assert not [line for line in again if ": cell " in line] and resumed.to_json() == found.to_json()
    assert '"ablation"' not in plain.to_json().split('"rows"')[1]


def test_differences_are_paired_by_prompt_and_seed_and_said():
    """Planted scores: nonlinear is worth .5 in every prompt, ten steps nothing; unpaired, the spread would hide it."""
    levels = torch.linspace(0, 9, 12, dtype=torch.float64)
    rows = []
    for name in ENTRIES:
        scores = [(levels + 0.5 * name.startswith("nonlinear") + 0.1 * seed).tolist() for seed in (0, 1)]
        rows.append(SweptRow(name, 1, "last", 0.2, "relative_T", 0.2, {"kl": 0.1}, scores, ()))
    found = Ablated(0.1, tuple(rows), "words", ("kl", "words"))
    for name, (more, less) in CONTRASTS.items():
        one, worth = found.differences[name], 0.5 * (more.startswith("nonlinear") and less.startswith("linear"))
        assert one.mean == pytest.approx(worth) and one.sd == pytest.approx(0, abs=1e-9)
        assert one.interval == pytest.approx((worth, worth)) and one.verdict == (
            "more" if worth else "no difference to be seen"
        )
        assert f"| {name} | {worth:+.3f} | 0.000 |" in found.table()


def test_a_budget_that_no_strength_spends_is_said_and_names_that_are_taken_are_refused(half, data):
    asked: dict[str, Any] = dict(
        layers=[LAYER], strengths=(0.1,), primary="words", metrics={"words": words}, ablation=True
    )
    with pytest.raises(ValueError, match=r"rows of the ablation are named linear, one step.*rename linear, ten steps"):
        ot.sweep(half.model, data, {"linear, ten steps": ot.CAA}, **asked, dry_run=True)
    with pytest.raises(ValueError, match="kl is a budget in nats, above 0"):
        ot.sweep(half.model, data, {"CAA": ot.CAA}, **asked, kl=0.0, dry_run=True)
    few: dict[str, Any] = dict(seeds=(0,), samples=1, max_new_tokens=2, keep=1)
    found = ot.sweep(half.model, data, {"CAA": ot.CAA}, **asked, **few, kl=1000.0)
    assert found.ablation is not None
    assert all(row.stop == "no strength spends 1000 nats: the nearest" for row in found.ablation.rows)
    assert found.ablation.table().count("the nearest") == 4
