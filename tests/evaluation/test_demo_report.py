"""Metrics and displacements against closed forms, and the promise of the demo on the embedded model."""

import json
import warnings
from dataclasses import replace
from functools import partial

import models
import pytest
import torch
from instances import ALL_METHODS, activations, fitted, planted, shorter

import odesteer_tl as ot
from odesteer_tl.backends import read_site, token_losses
from odesteer_tl.evaluation import comparison_plots
from odesteer_tl.evaluation.continuations import UNSTEERED, Setting, continued
from odesteer_tl.evaluation.data import PARTS, material_of
from odesteer_tl.evaluation.displacement import median_displacement, reach
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.levels import levels_of, unsteered_texts
from odesteer_tl.evaluation.metrics import bootstrap_interval, distinct
from odesteer_tl.evaluation.reports import demo as demo_report
from odesteer_tl.evaluation.reports import stages as stages_module
from odesteer_tl.evaluation.reports.stages import counted


@pytest.fixture(scope="module")
def acts(demo):
    return ot.collect(demo.model, demo.desired[:150], demo.undesired[:150], layer=2, position="mean")


def test_distinct_counts_pooled_ngrams():
    assert distinct(["a b c"], 2) == 1.0
    assert distinct(["a a a a"], 2) == pytest.approx(1 / 3)
    assert distinct(["a b", "a b"], 2) == pytest.approx(1 / 2)
    assert distinct(["a b c", "b c a"], 1) == pytest.approx(3 / 6)
    assert distinct(["one"], 2) == 0.0 and distinct([], 2) == 0.0


def test_the_interval_of_independent_scores_is_the_normal_one():
    scores = (torch.rand(400, 1, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    low, high = bootstrap_interval(scores)
    mean, error = float(scores.mean()), float((scores.var() / 400).sqrt())
    # the bootstrap's own noise at 2,000 resamples is about 3 % of the half-width
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_repeating_a_prompt_tells_the_interval_nothing_new():
    scores = (torch.rand(50, 1, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    assert bootstrap_interval(scores) == pytest.approx(bootstrap_interval(scores.expand(50, 8)))


def test_the_interval_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first = bootstrap_interval(torch.eye(6, dtype=torch.float64))
    torch.manual_seed(5)
    assert bootstrap_interval(torch.eye(6, dtype=torch.float64)) == first
    torch.set_rng_state(before)
    bootstrap_interval(torch.eye(6, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_time_for_a_displacement_of_a_constant_field_is_known():
    acts, a = planted(), activations(31, dtype=torch.float32)
    vector = ot.CAA.fit(acts).barrier.weight
    expected = 0.2 * a.norm(dim=1).median() / vector.norm()
    assert reach(ot.CAA.fit(acts), a, 0.2) == (pytest.approx(float(expected), rel=2e-3), 0.2)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_the_time_found_moves_the_median_activation_that_far(name):
    method, a = fitted(name), activations(31, dtype=torch.float32)
    assert median_displacement(method, a, reach(method, a, 0.1)[0]) == pytest.approx(0.1, rel=5e-3)


def test_a_barrier_that_ends_before_the_goal_gives_the_farthest():
    class Well:
        def value(self, a):
            return -((a - 1) ** 2).sum(-1)

    near = ot.GradientFlow(Well(), unit_speed=False, layer=0)
    assert reach(near, torch.ones(5, 24), 0.1)[1] == 0  # at the top: the gradient is zero
    bounded, a = ot.Ablation.fit(planted()), planted().undesired
    T, moved = reach(bounded, a, 5.0)  # a projection moves at most by ‖a‖, at T = 1
    assert T == 1.0 and moved == median_displacement(bounded, a, 1.0) < 1


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_token_losses_are_those_of_each_row_alone(kind, family):
    model, reference = models.load(kind, family), models.hugging_face(family)
    prompts = ["the film", "a plot was good and dull", "a", "a film was dull"]
    out = ot.generate(model, prompts, max_new_tokens=5, stop_at_eos=False)
    losses, counted = token_losses(model, out, batch_size=2)
    assert counted.sum(1).tolist() == [5, 5, 5, 5]
    for row in range(4):
        ids = out.tokens[row][out.mask[row]]
        with torch.no_grad():
            logp = reference(ids.unsqueeze(0)).logits[0].log_softmax(-1)
        expected = -logp[:-1].gather(1, ids[1:, None])[-5:, 0]
        # float32, logits of size about 10
        torch.testing.assert_close(losses[row][counted[row]], expected, atol=2e-5, rtol=1e-5)
    assert losses[~counted].abs().max() == 0


def test_read_site_is_one_side_of_collect(demo, acts):
    some = read_site(demo.model, demo.desired[:5], 2, position="mean")
    torch.testing.assert_close(some, acts.desired[:5], atol=1e-4, rtol=1e-5)


def test_odesteer_moves_the_real_model_and_a_random_direction_does_not(demo, acts):
    """The promise of the demo, at one fixed strength: a fifth of the activations' norm."""
    judge = Judge.load_embedded()

    def share(method):
        where = {} if method is None else {"relative_T": 0.2, "layer": 2}
        out = ot.generate(
            demo.model, [p for p in demo.prompts for _ in range(3)], method, max_new_tokens=16, do_sample=True,
            top_p=0.9, **where,
        )  # fmt: skip
        return float((judge.positive_probability(out.continuations) > 0.5).double().mean())

    # 120 continuations: the standard error of a share is .045, the measured shift .25
    unsteered = share(None)
    assert share(ot.ODESteer.fit(acts)) > unsteered + 0.12
    # one direction can move the judge by chance (measured: between -.08 and +.10), their mean does not
    control = [share(ot.RandomDirection.fit(acts, seed=seed)) for seed in range(2)]
    assert abs(sum(control) / 2 - unsteered) < 0.12


@pytest.fixture(scope="module")
def shown(demo, tmp_path_factory):
    """`odesteer-tl demo` on few texts and prompts, with what it printed."""
    picture = tmp_path_factory.mktemp("demo") / "demo.png"
    few = replace(shorter(demo), prompts=demo.prompts[:6], validation_prompts=demo.validation_prompts[:4])
    lines = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The shift")  # the texts are few
        patch.setattr(demo_report, "load_demo", lambda model: few)
        patch.setattr(demo_report, "BUDGETS", (0.1, 0.4))
        patch.setattr(demo_report, "settings_of", partial(settings_of_few, demo_report.settings_of))
        found = demo_report.run_showcase(layer=2, picture=picture, out=lines.append)
    return few, found, "\n".join(lines), picture


def settings_of_few(settings_of, *given, **options):
    return settings_of(*given, **options | {"samples": 2, "further_samples": 1, "max_new_tokens": 8})


def test_the_demo_has_a_run_for_each_method_and_budget(shown):
    few, found, said, picture = shown
    assert [row.name for row in found.rows] == [UNSTEERED, *demo_report.ENTRIES]
    (base,) = found.rows[0].runs
    assert base.level is None and base.displacement == base.shift == base.kl == 0
    for row in found.rows[1:]:
        assert [run.level.budget for run in row.runs] == [0.1, 0.4]
        for run in row.runs:
            assert run.level.reached == (abs(run.level.kl / run.level.budget - 1) <= 0.05)
            assert run.shift == pytest.approx(run.share - base.share)
            assert run.shift_interval[0] <= run.shift <= run.shift_interval[1]
            assert run.share_interval == bootstrap_interval(run.desired)
            assert len(run.continuations) == {0.1: 12, 0.4: 6}[run.level.budget]
        assert f"{row.name:<20}" in said
    assert picture.read_bytes()[:4] == b"\x89PNG"
    for block in (
        "At 0.1 nats of KL:",
        "0.4 nats",
        "layer 2, position",
        "At the other budgets: 6 continuations a row",
        f"> {few.prompts[0]}",
    ):
        assert block in said
    kept = json.loads(json.dumps(found.as_json()))
    assert [row["name"] for row in kept["rows"]] == [UNSTEERED, *demo_report.ENTRIES]
    assert kept["rows"][2]["runs"][0]["level"]["budget"] == 0.1


def test_what_is_drawn_is_what_was_found(shown, monkeypatch):
    """The lines of the picture hold the KL that was spent, the shares and the perplexity ratios."""
    _, found, _, _ = shown
    figures = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, file, title: figures.append(figure))
    comparison_plots.plot_budgets(found.rows, None, "x.png")
    _, gain, cost = figures[0].axes
    for row, shares, ratios in zip(found.rows[1:], gain.lines, cost.lines, strict=False):
        assert shares.get_label() == row.name
        assert list(shares.get_xdata()) == list(ratios.get_xdata()) == [run.kl for run in row.runs]
        assert list(shares.get_ydata()) == [100 * run.share for run in row.runs]
        assert list(ratios.get_ydata()) == [run.perplexity_ratio for run in row.runs]


def test_the_time_that_is_left_is_the_mean_of_what_is_done(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(stages_module.time, "perf_counter", lambda: now[0])
    row = counted(said.append, 4)
    for name, at in (("one", 0.0), ("two", 10.0), ("three", 14.0), ("four", 21.0)):
        now[0] = at
        row(name)
    assert said == [
        "one (1 of 4)", "two (2 of 4, about 30 s to go)", "three (3 of 4, about 14 s to go)",
        "four (4 of 4, about 7 s to go)",
    ]  # fmt: skip


def test_several_methods_take_turns_over_the_continuations(demo, acts):
    """Each is what its own method alone makes of it, under greedy decoding; turns go on from prompt to prompt."""
    directions = tuple(ot.RandomDirection.fit(acts, seed=seed) for seed in range(2))
    setting = Setting(demo.model, 2, demo.prompts[:2], [], lambda texts: [0.5] * len(texts), temperature=0.0,
        max_new_tokens=6)  # fmt: skip
    strength = ot.Strength(relative_T=0.9)
    made = continued(setting, setting.prompts, 3, directions, strength).continuations
    alone = [
        ot.generate(demo.model, demo.prompts[:2], method, strength, max_new_tokens=6).continuations
        for method in directions
    ]
    assert alone[0] != alone[1]
    assert made == [alone[(3 * prompt + turn) % 2][prompt] for prompt in range(2) for turn in range(3)]


def test_methods_that_take_turns_spend_the_budget_together(demo, acts):
    """Each on the texts where it is its turn: the mean over all their tokens is the budget."""
    directions = tuple(ot.RandomDirection.fit(acts, seed=seed) for seed in range(2))
    setting = Setting(demo.model, 2, [], demo.validation_prompts[:4], lambda texts: texts, max_new_tokens=4)
    (level,) = levels_of(unsteered_texts(setting), setting, directions)
    spent = []
    for turn, method in enumerate(directions):
        own = ot.generate(demo.model, setting.validation_prompts[turn::2], max_new_tokens=4)
        strengths = partial(lambda value, method: [(method, ot.Strength(relative_T=value))], method=method)
        spent.append(SteeredTexts.of(demo.model, own).divergences(strengths, [level.relative_T], 9)[0])
    assert float(torch.cat(spent).mean()) == pytest.approx(level.kl, rel=1e-3)
    assert level.kl == pytest.approx(0.1, rel=0.05)
    assert float(spent[0].mean()) != pytest.approx(float(spent[1].mean()), rel=1e-3)


def test_a_quick_run_tries_few_layers_of_a_deep_model_and_all_of_a_shallow_one(demo, monkeypatch):
    assert demo_report.layers_to_try(demo.model) == list(range(1, demo.model.cfg.n_layers - 1))
    monkeypatch.setattr(demo_report, "layers_of", lambda model: 30)
    few = demo_report.layers_to_try(demo.model)
    assert len(few) == 4 and few == sorted(set(few)) and 5 < few[0] and few[-1] < 29
    few = {side: getattr(demo, side)[: 10 if "validation" in side else 80] for side in PARTS if side != "pairs"}
    material = material_of(demo.model, replace(demo, pairs=[], **few), [2, 3], "mean")
    assert material.texts.layer in (2, 3) and "(2 places tried)" in material.place
