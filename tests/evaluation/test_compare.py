"""`compare` on small data: what it refuses, and what it measures where."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from instances import fewer, planted, without_shape_checks

import odesteer_tl as ot
from odesteer_tl.evaluation import continuations
from odesteer_tl.evaluation.checks import conditions_of
from odesteer_tl.evaluation.compare import budgets_of
from odesteer_tl.evaluation.continuations import Setting, continued
from odesteer_tl.evaluation.entries import (
    LITERATURE,
    PRAISE,
    Prompted,
)
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.results import over
from odesteer_tl.parity import table

JUDGE = Judge.load_embedded().positive_probability


def parity(name):
    """A loop of the parity table, fitted to a random model."""
    return table.parity_rows()[name]("gpt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"HPR": LITERATURE["HPR"]}}, "'HPR' cannot be fitted: it is fitted on pairs"),
        ({"methods": {"CAA": "caa"}}, "'CAA' must be a fitted method"),
        ({"data": [1, 2]}, "list lacks desired"),
        ({"judge": JUDGE}, "A judge needs data with prompts"),
        ({"seeds": ()}, "at least one seed"),
        ({"methods": {"none": lambda acts: None}}, "'none' cannot be compared: its function returns a fitted method"),
        ({"methods": {"HPR": ot.HPR.fit}}, "'HPR' cannot be fitted: it is fitted on pairs"),
        ({"methods": {"HPR": lambda acts: ot.HPR.fit(acts)}}, "'HPR' cannot be compared: HPR learns"),
        (
            {"methods": {"none": lambda acts: Prompted(())}},
            "'none' cannot be compared: The prompt-only control needs prefixes",
        ),
        ({"methods": {"empty": lambda acts: Prompted(("one", ""))}}, "The prompt-only control needs prefixes"),
        ({"methods": None, "prefixes": "I loved it."}, r"prefixes is a sequence of texts, such as \('I loved it.',\)"),
        ({"kl": 0.0}, "kl is a budget in nats, above 0"),
        ({"kl": ()}, "kl is a budget in nats, above 0"),
        ({"kl": (0.1, -1.0)}, "kl is a budget in nats, above 0"),
        ({"position": "mean"}, "position is where a model is read, but these activations .*: leave out position"),
        ({"prefixes": PRAISE}, "leave out methods, or add a Prompted"),
        ({"layer": 3}, "these activations were read at blocks.3.hook_resid_post: leave out layer"),
        ({"data": planted(layer=None), "layer": 3}, "these activations were read already: leave out layer"),
        ({"methods": {"both": ot.Layers(parts=(ot.CAA.fit(planted()),))}}, "'both' cannot be compared: it acts at sev"),
        (
            {"methods": {"far": ot.CAA.fit(replace(planted(), layer=9, hook_name=None))}},
            "'far' cannot be compared: it was fitted at blocks.9.hook_resid_post, but the data are read at blocks.3",
        ),
        ({"methods": {"loop": ot.SPID.fit}}, "'loop' cannot be fitted: it is fitted on texts and the model"),
        ({"methods": {"loop": parity("S-PID")}}, "'loop' cannot be compared: it steers a model over its layers"),
        (
            {"methods": {"z": ot.CAA.fit(replace(planted(), hook_name="blocks.3.attn.hook_z"))}},
            "it was fitted at blocks.3.attn.hook_z",
        ),
    ],
)
def test_what_cannot_be_compared_ends_in_its_message(change, message):
    arguments = {"data": planted(), "methods": {"ITI": ot.ITI.fit}} | change
    with pytest.raises(ValueError, match=message):
        ot.compare(None, **arguments)


def test_one_number_of_seeds_and_a_list_of_methods_are_refused():
    for wrong in ({"seeds": 3}, {"methods": [ot.ITI.fit]}):
        with (
            without_shape_checks(),
            pytest.raises(ValueError, match=r"such as \(0, 1, 2\), and methods a dict by name"),
        ):
            ot.compare(None, planted(), **wrong)


def test_a_method_in_another_precision_is_checked_alike(held_out):
    method = ot.ODESteer.fit(planted())
    assert conditions_of(method.to(dtype=torch.float64), held_out) == conditions_of(method, held_out)


@pytest.mark.filterwarnings("ignore:The best shift", "ignore:The shift")
def test_without_a_judge_no_prompts_are_needed_and_nnsight_reads_at_the_same_layer(demo):
    few = SimpleNamespace(
        desired=demo.desired[:8], undesired=demo.undesired[:8], pairs=[],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
    )  # fmt: skip
    one = ot.compare(demo.model, few, {"CAA": ot.CAA.fit}, position="mean")
    other = ot.compare(ot.load_demo(library="nnsight").model, few, {"CAA": ot.CAA.fit}, position="mean")
    assert one.row("CAA").method.layer == other.row("CAA").method.layer
    chosen = ot.choose_layer(demo.model, few.desired, few.undesired, ot.CAA, positions="mean")
    assert one.row("CAA").method.layer == chosen.layer and f"layer {chosen.layer}, position 'mean'" in one.place
    given = ot.compare(demo.model, few, {"CAA": ot.CAA.fit}, layer=3, position="last")
    assert given.row("CAA").method.layer == 3 and given.place == "layer 3, position 'last', as asked"


@pytest.mark.parametrize("said", [[0.5], torch.tensor([0.5, float("nan")]), torch.tensor([-3.0, 3.0])], ids=str)
def test_a_judge_gives_a_probability_for_each_text(demo, said):
    setting = Setting(demo.model, 2, demo.prompts[:2], [], lambda texts: said, max_new_tokens=2)
    with pytest.raises(ValueError, match="one probability, from 0 to 1, for each of 2 texts"):
        continued(setting, setting.prompts, 1, None, None)
    as_list = replace(setting, judge=lambda texts: [0.2, 0.8])
    assert continued(as_list, setting.prompts, 1, None, None).desired.tolist() == [[0.0], [1.0]]


def test_data_with_prompts_need_a_model(demo):
    with pytest.raises(ValueError, match="needs a model"):
        ot.compare(None, demo)


def test_classes_are_compared_by_their_own_fit_alone(demo, short_training):
    few = replace(
        demo, pairs=demo.pairs[:12], desired=demo.desired[:12], undesired=demo.undesired[:12], prompts=demo.prompts[:1],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
        validation_prompts=demo.validation_prompts[:1],
    )  # fmt: skip
    methods = {"HPR": ot.HPR.fit, "TruthFlow": ot.TruthFlow, "RC": ot.REControl.fit}  # a class stands for its fit
    found = ot.compare(
        demo.model, few, methods, judge=JUDGE, seeds=(0, 1), samples=1, max_new_tokens=2, layer=2, position="mean"
    )
    assert [row.fitted_on for row in found.rows[1:]] == ["pairs", "queries", "texts"]
    for row in found.rows[2:]:  # the T of TruthFlow and RE-Control depends on how steep the network of a seed is
        assert row.runs[0].level.strength.value != row.runs[1].level.strength.value


def test_the_perplexity_of_a_prompted_continuation_is_that_after_the_prompt_alone(demo, monkeypatch):
    made, judged = [], []
    generate = continuations.generate
    monkeypatch.setattr(continuations, "generate", lambda *a, **k: made.append(generate(*a, **k)) or made[-1])
    prompts = ["The film opens with", "I watched this with my family and"]
    setting = Setting(
        demo.model, 2, prompts, prompts, lambda texts: judged.extend(texts) or JUDGE(texts), max_new_tokens=5
    )
    found = continued(setting, prompts, 1, None, None, prefix="I loved every minute of it.")
    (out,) = made
    assert all(text.startswith("I loved every minute of it. " + p) for text, p in zip(out.texts, prompts, strict=True))
    assert judged == found.continuations == out.continuations
    losses = []
    for row, prompt in enumerate(prompts):
        generated = out.tokens[row][out.mask[row]][int(out.prompt_lengths[row]) :]
        before = demo.model.to_tokens(prompt)[0]
        with torch.no_grad():
            logp = demo.model(torch.cat([before, generated])[None])[0].log_softmax(-1)
        losses += [-float(logp[len(before) - 1 + i, token]) for i, token in enumerate(generated)]
    assert len(losses) >= 6
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


@pytest.fixture(scope="module")
def few(demo):
    return fewer(demo, texts=12, validation_prompts=3)


def spent(model, prompts, tokens, steer):
    """Mean KL(unsteered ‖ steered) over the last token of each prompt and its greedy continuation, a row at a time."""
    every = []
    for prompt in prompts:
        start = model.to_tokens(prompt).shape[1]
        written = ot.generate(model, [prompt], max_new_tokens=tokens).tokens
        with torch.no_grad():
            p = model(written)[0, start - 1 :].double().log_softmax(-1)
        q = steer(written, start).double().log_softmax(-1)
        every.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(every).mean())


def test_every_row_spends_every_budget_by_a_plain_hook_and_the_same_prompts_are_continued(few):
    """CAA adds T·v behind block 2: the cost of the strength that was found, written out with a hook of this test."""
    model, budgets, tokens = few.model, (0.05, 0.2), 4
    found = ot.compare(
        model, few, {"CAA": ot.CAA.fit}, judge=JUDGE, kl=budgets, seeds=(0,), samples=2, max_new_tokens=tokens,
        layer=2, position="mean",
    )  # fmt: skip
    row = found.row("CAA")
    assert found.budgets == row.budgets == budgets
    for run in row.runs:
        vector, level = row.method.barrier.weight, run.level

        def steered(written, start, vector=vector, level=level):
            def add(resid, hook):
                resid[:, start - 1 :] += level.T * vector
                return resid

            with torch.no_grad():
                return model.run_with_hooks(written, fwd_hooks=[("blocks.2.hook_resid_post", add)])[0, start - 1 :]

        cost = spent(model, few.validation_prompts, tokens, steered)
        assert level.reached and level.kl == pytest.approx(cost, rel=2e-3)
        assert cost == pytest.approx(level.budget, rel=0.05)
    weak, strong = row.runs
    assert weak.level.T < strong.level.T and weak.displacement < strong.displacement
    again = ot.generate(
        model, [p for p in few.prompts for _ in range(2)], row.method, strong.level.T, max_new_tokens=tokens,
        do_sample=True, temperature=0.7, top_p=0.9, seed=0,
    )  # fmt: skip
    assert strong.continuations == again.continuations
    with pytest.raises(ValueError, match=r"was run at budgets of \(0.05, 0.2\) nats, not at 1.0"):
        row.at(1.0)


def test_the_cost_of_a_prefix_is_that_of_reading_it_first(few):
    """Of several prefixes the one nearest to the budget; the KL of both, after the same continuation."""
    model, tokens = few.model, 4
    prefixes = ("I loved this film.", "Everyone should see it. I loved every minute of it.")
    found = ot.compare(
        model, few, {"prompt": Prompted(prefixes)}, judge=JUDGE, seeds=(0,), samples=1, max_new_tokens=tokens,
        layer=2, position="mean",
    )  # fmt: skip
    (run,) = found.row("prompt").runs

    def after(prefix):
        def read(written, start):
            prompt = next(p for p in few.validation_prompts if torch.equal(model.to_tokens(p), written[:, :start]))
            words = model.to_tokens(f"{prefix} {prompt}")
            with torch.no_grad():
                return model(torch.cat([words, written[:, start:]], 1))[0, words.shape[1] - 1 :]

        return spent(model, few.validation_prompts, tokens, read)

    costs = {prefix: after(prefix) for prefix in prefixes}
    nearest = min(costs, key=lambda prefix: abs(math.log(costs[prefix] / 0.1)))
    assert run.level.prefix == nearest and run.level.kl == pytest.approx(costs[nearest], rel=1e-3)
    assert run.level.strength is None and run.displacement is None
    assert ("†" in found.table()) == (not run.level.reached)


def test_a_map_that_is_too_weak_is_taken_whole_and_said(few):
    """Ablation of a direction goes no further than T = 1."""
    found = ot.compare(
        few.model, few, {"ablation": ot.Ablation.fit}, judge=JUDGE, kl=5.0, seeds=(0,), samples=1, max_new_tokens=3,
        layer=2, position="mean",
    )  # fmt: skip
    (run,) = found.row("ablation").runs
    assert run.level.T == 1.0 and not run.level.reached and run.level.kl < 5
    assert "ablation †" in found.table() and "no strength, or no prefix, spends the budget" in found.table()


def test_budgets_are_numbers_arrays_or_tensors():
    assert budgets_of(1) == (1.0,) and budgets_of([0.1, 0.3, 0.1]) == (0.1, 0.3)
    assert budgets_of(np.array([0.5, 0.25])) == budgets_of(torch.tensor([0.5, 0.25])) == (0.5, 0.25)


def test_a_calibrated_method_is_compared_as_its_own(few):
    """Also where a function of the user's returns it: a comparison seeks the strengths."""
    fitted = ot.CAA.fit(ot.collect(few.model, few.desired, few.undesired, layer=2, position="mean"))
    carried = ot.calibrate(few.model, fitted, few.validation_prompts, max_new_tokens=3).method
    rows = ot.compare(
        few.model, few, {"given": carried, "made": lambda acts: carried, "turns": lambda acts: (carried, carried)},
        judge=JUDGE, kl=0.2, seeds=(0,), samples=1, max_new_tokens=3, layer=2, position="mean",
    ).rows  # fmt: skip
    first, second, third = (row.runs[0].level for row in rows[1:])
    assert first == second and first.T == pytest.approx(third.T, rel=1e-3) and first.kl == pytest.approx(0.2, rel=0.05)


def test_a_chat_is_measured_as_it_is_generated(few):
    """The displacement is that of the last token of the prompt in its template; without a template nothing is begun."""
    with pytest.raises(ValueError, match="This model's tokenizer has no chat template: leave out chat=True"):
        ot.compare(few.model, few, {"CAA": ot.CAA.fit}, judge=JUDGE, chat=True)
    model = ot.load_demo().model
    model.tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }} A:{% endfor %}"
    row = ot.compare(
        model, few, {"CAA": ot.CAA.fit}, judge=JUDGE, seeds=(0,), samples=1, max_new_tokens=3, chat=True, layer=2,
        position="mean",
    ).row("CAA")  # fmt: skip
    (run,) = row.runs
    name, ends = "blocks.2.hook_resid_post", []
    for prompt in few.prompts:
        asked = model.to_tokens(f"Q: {prompt} A:", prepend_bos=False)  # the template writes none
        ends.append(model.run_with_cache(asked, names_filter=name)[1][name][0, -1])
    a = torch.stack(ends)
    expected = (run.level.T * row.method.barrier.weight.norm() / a.norm(dim=1)).mean()
    assert run.displacement == pytest.approx(float(expected), rel=1e-3)


def test_figures_that_are_not_finite_are_said_and_not_an_error():
    mean, sd = over([1.0, float("nan")])
    assert math.isnan(mean) and math.isnan(sd) and over([float("inf")])[1] is None
