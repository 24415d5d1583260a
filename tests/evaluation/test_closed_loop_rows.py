"""Closed loops in `compare`: fitted on the model, measured in it, refused where it does not see them."""

import pytest
import torch
from instances import fewer

import odesteer_tl as ot
from odesteer_tl.evaluation import continuations
from odesteer_tl.evaluation import entries as entries_module
from odesteer_tl.evaluation.entries import (
    LOOPS,
    Entry,
)
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.parity import table

JUDGE = Judge.load_embedded().positive_probability


def parity(name):
    """A loop of the parity table, fitted to a random model."""
    return table.parity_rows()[name]("gpt2")


@pytest.fixture(scope="module")
def few(half):
    return fewer(half, texts=6, validation_prompts=2)


def test_closed_loops_are_fitted_on_the_model_and_measured_in_it(few):
    """At the budget of every row, or at the nearest cost where a loop costs more even at T = 0, and says so; moved as
    the model shows it where the data are read; no h at one site. A fitted loop and a class's own fit make one row."""
    fitted = ot.SPID.fit(few.model, few.desired, few.undesired)
    found = ot.compare(
        few.model, few, {"S-PID": LOOPS["S-PID"], "own": ot.SPID.fit, "fitted": fitted}, judge=JUDGE, seeds=(0,),
        samples=1, max_new_tokens=3, layer=2, position="mean",
    )  # fmt: skip
    rows = found.rows[1:]
    assert [row.fitted_on for row in rows] == ["model", "model", "elsewhere"]
    assert all(torch.equal(row.method.directions, fitted.directions) for row in rows)
    hook = "blocks.2.hook_resid_post"

    def at(text, T):
        if T is None:
            return few.model.run_with_cache(text, names_filter=hook)[1][hook][0, -1]
        with ot.steering(few.model, fitted, T):
            return few.model.run_with_cache(text, names_filter=hook)[1][hook][0, -1]

    def moved(texts, T):
        pairs = [(at(text, None), at(text, T)) for text in texts]
        return torch.stack([(end - a).norm() / a.norm() for a, end in pairs])

    for row in rows:
        (run,) = row.runs
        assert run.level.reached == (abs(run.level.kl / 0.1 - 1) <= 0.05)
        assert run.displacement == pytest.approx(float(moved(few.prompts, run.level.T).mean()), rel=1e-3)
        c = row.conditions
        assert c.displacement == pytest.approx(float(moved(few.validation_undesired, 1.0).median()), rel=1e-3)
        assert (c.T, c.auc, c.h_along, c.rising, c.inside) == (1.0, None, None, None, None) and c.angle > 0
    assert "no h" in found.table()
    assert ("†" in found.table()) == any(not run.level.reached for row in rows for run in row.runs)


def test_a_loop_that_the_comparison_does_not_see_or_that_would_take_turns_is_refused(few):
    late = ot.SPID.fit(few.model, few.desired, few.undesired, layers=[2])
    with pytest.raises(ValueError, match="'late' cannot be compared: it acts from layer 2 on, but the data"):
        ot.compare(few.model, few, {"late": late}, layer=1, position="mean")
    assert ot.compare(few.model, few, {"late": late}, layer=2, position="mean").rows[0].conditions.displacement > 0
    both = Entry(lambda source, seed: (late, late), "model")
    with pytest.raises(ValueError, match="'both' cannot be compared: closed loops cannot take turns"):
        ot.compare(few.model, few, {"both": both}, layer=2, position="mean")


def test_of_the_default_rows_a_loop_that_fails_is_left_out_with_the_reason(few, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(ot.ALQR, "fit", fails)
    found = ot.compare(few.model, few, layer=2, position="mean")
    assert found.left_out["A-LQR"] == found.left_out["A-LQR+"] == "no memory"
    assert "S-PID" in [row.name for row in found.rows]
    with pytest.raises(RuntimeError, match="no memory"):
        ot.compare(few.model, few, {"mine": ot.ALQR.fit}, layer=2, position="mean")


def test_a_lqr_plus_steers_every_token(few, monkeypatch):
    """And A-LQR the last one of the prompt, and those that follow."""
    given = []
    generate = continuations.generate
    monkeypatch.setattr(continuations, "generate", lambda *a, **k: given.append((k, generate(*a, **k))) or given[-1][1])
    monkeypatch.setitem(entries_module.FEW, "n_jacobians", 2)
    monkeypatch.setitem(entries_module.FEW, "context", 4)
    entries = {name: LOOPS[name] for name in ("A-LQR", "A-LQR+")}
    found = ot.compare(
        few.model, few, entries, judge=JUDGE, seeds=(0,), samples=1, max_new_tokens=2, layer=2, position="mean",
    )  # fmt: skip
    (_, (plain, one), (plus, all_of)) = given
    assert (plain["positions"], plus["positions"]) == ("decoding", "all")
    assert plain["layer"] is plus["layer"] is None
    before = int(one.prompt_lengths.sum()) - len(one.prompt_lengths)
    assert set(one.report.tokens_steered) == set(all_of.report.tokens_steered) == set(range(3))
    if torch.equal(one.mask.sum(1), all_of.mask.sum(1)):
        assert all_of.report.tokens_steered[0] - one.report.tokens_steered[0] == before
    first, second = found.rows[1:]
    assert torch.equal(first.method.answers, second.method.answers)  # one regulator
    assert first.conditions.displacement != second.conditions.displacement
