"""Metrics against closed forms, the rule for strengths case by case, and the promise of the demo on the real model."""

import json
import math
from dataclasses import replace

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instances import ALL_METHODS, activations, fitted, planted

import odesteer_tl as ot
from odesteer_tl.backends import read_site, token_losses
from odesteer_tl.evaluation.continuations import UNSTEERED, Setting
from odesteer_tl.evaluation.curve import Curve
from odesteer_tl.evaluation.demo_runs import as_json, run_study, table
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.metrics import bootstrap_interval, distinct
from odesteer_tl.evaluation.plots import plot_study
from odesteer_tl.evaluation.strength import Trial, best, least_T, median_displacement, nearest, time_for


@pytest.fixture(scope="module")
def acts(demo):
    return ot.collect(demo.model, demo.desired, demo.undesired, layer=2, position="mean")


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
    assert time_for(ot.CAA.fit(acts), a, 0.2) == pytest.approx(float(expected), rel=2e-3)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_the_time_found_moves_the_median_activation_that_far(name):
    method, a = fitted(name), activations(31, dtype=torch.float32)
    assert median_displacement(method, a, time_for(method, a, 0.1)) == pytest.approx(0.1, rel=5e-3)


def test_where_more_strength_first_moves_less_the_far_side_is_found():
    """|c − bT|: what a closed loop does to activations beyond its set-points."""

    def moved(T):
        return abs(0.45 - 0.1 * T)

    assert [nearest(moved, goal, 8.0, 1e-4, 4.0) for goal in (0.1, 0.2, 0.4)] == [
        (pytest.approx(T, rel=1e-3), goal) for T, goal in ((5.5, 0.1), (6.5, 0.2), (8.5, 0.4))
    ]
    assert nearest(moved, 0.04, 8.0, 1e-4, 4.0) == (4.0, pytest.approx(0.05))  # further even there
    assert least_T(moved, 0.4, 1.0, 1e-4) == 0.0
    assert nearest(lambda T: min(T, 0.3), 0.4, 1.0, 1e-4) == (0.5, 0.3)  # the smallest T tried at the farthest reach


def test_a_barrier_that_ends_before_the_goal_is_an_error():
    class Well:
        def value(self, a):
            return -((a - 1) ** 2).sum(-1)

    near = ot.GradientFlow(Well(), unit_speed=False, layer=0)
    at_the_top = torch.ones(5, 24)  # the gradient is zero here
    with pytest.raises(ValueError, match="No T up to"):
        time_for(near, at_the_top, 0.1)


def trial(displacement, share, perplexity=10.0, distinct2=0.8):
    return Trial(displacement, 1.0, share, perplexity, distinct2)


def test_of_prefixes_the_rule_takes_the_largest_share_that_is_allowed():
    base = trial(0.0, 0.5)
    weak, good, broken = trial(0.1, 0.6), trial(0.2, 0.7, perplexity=13.0), trial(0.4, 0.9, perplexity=13.1)
    dull = trial(0.8, 0.95, distinct2=0.75)
    assert best([weak, good, broken, dull], base) is good
    assert best([broken, dull], base) is broken  # nothing allowed: the weakest
    assert best([trial(0.4, 0.6), trial(0.2, 0.6)], base).displacement == 0.4  # the first of equals


BASE = Trial(0.0, 0.0, 0.5, 10.0, 0.8)
TRIED = [
    Trial(0.1, 2.0, 0.6, 11.0, 0.8),
    Trial(0.2, 4.0, 0.9, 12.0, 0.82),
    Trial(0.4, 10.0, 0.8, 16.0, 0.78),
    Trial(0.8, 30.0, 0.4, 30.0, 0.5),
]


def test_the_strength_spends_the_budget_between_trials():
    """Perplexity comes to 13 between 12 and 16, as a line in its logarithm."""
    part = math.log(13 / 12) / math.log(16 / 12)
    chosen = Curve(TRIED, BASE).chosen
    assert chosen.displacement == pytest.approx(0.2 + 0.2 * part)
    assert chosen.T == pytest.approx(4 + 6 * part) and chosen.share == pytest.approx(0.9 - 0.1 * part)
    assert chosen.perplexity == pytest.approx(1.3) and Curve(TRIED, BASE).allowed
    below = Curve(TRIED, BASE).at_perplexity(1.05)  # before the first trial: between it and no steering
    assert below.displacement == pytest.approx(0.1 * math.log(1.05) / math.log(1.1))
    assert below.T == pytest.approx(20 * below.displacement)


def test_variety_is_a_bound_too():
    dull = [Trial(0.1, 1.0, 0.6, 10.0, 0.72), TRIED[2]]  # .9 of unsteered at .1: .95 at half of that
    assert Curve(dull, BASE).chosen.displacement == pytest.approx(0.05)


def test_perplexity_that_falls_again_stays_what_it_was():
    risen = [Trial(0.1, 1.0, 0.6, 12.0, 0.8), Trial(0.2, 2.0, 0.6, 11.0, 0.8), Trial(0.4, 4.0, 0.6, 12.9, 0.8)]
    curve = Curve(risen[::-1], BASE)  # in any order
    assert curve.at(0.2).perplexity == pytest.approx(1.2)
    assert curve.chosen.displacement == 0.4, "the end, where the budget is never spent"


def test_a_loop_does_not_rest_at_no_steering():
    loop = Curve([Trial(0.1, 0.5, 0.6, 14.0, 0.8), Trial(0.2, 1.0, 0.7, 15.0, 0.8)], BASE, rests=False)
    assert (loop.chosen.displacement, loop.chosen.T, loop.allowed) == (0.1, 0.5, False)
    assert not Curve(loop.trials, BASE, rests=False).allowed and Curve(loop.trials, BASE).allowed


@given(st.lists(st.floats(-1e-6, 1e-6), min_size=5, max_size=5), st.sampled_from([12.999999, 13.0, 13.000001]))
def test_rounding_moves_the_strength_by_no_more_than_rounding(errors, edge):
    """A trial at the very bound: the old rule took one grid point or the other, half as far or twice."""
    tried = [*TRIED[:2], Trial(0.3, 7.0, 0.85, edge, 0.79), *TRIED[2:]]
    moved = [
        replace(t, perplexity=t.perplexity * (1 + e), share=t.share + e) for t, e in zip(tried, errors, strict=True)
    ]
    one, other = Curve(tried, BASE).chosen, Curve(moved, BASE).chosen
    assert one.displacement == pytest.approx(0.3, abs=1e-4)
    assert other.displacement == pytest.approx(one.displacement, abs=1e-4) and other.T == pytest.approx(one.T, abs=1e-2)


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_token_losses_are_those_of_each_row_alone(kind, family):
    model, reference = models.load(kind, family), models.hugging_face(family)
    out = ot.generate(model, ["the film", "a plot was good and dull"], max_new_tokens=5, stop_at_eos=False)
    losses, counted = token_losses(model, out)
    assert counted.sum(1).tolist() == [5, 5]
    for row in range(2):
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
            demo.model, [p for p in demo.prompts for _ in range(3)], method, max_new_tokens=24, do_sample=True,
            top_p=0.9, **where,
        )  # fmt: skip
        return float((judge.positive_probability(out.continuations) > 0.5).double().mean())

    # 120 continuations: the standard error of a share is .045, the measured shift .25
    unsteered = share(None)
    assert share(ot.ODESteer.fit(acts)) > unsteered + 0.12
    # one direction can move the judge by chance (measured: between -.08 and +.10), their mean does not
    control = [share(ot.RandomDirection.fit(acts, seed=seed)) for seed in range(4)]
    assert abs(sum(control) / 4 - unsteered) < 0.12


@pytest.fixture(scope="module")
def study(demo, acts):
    setting = Setting(
        demo.model, 2, demo.prompts[:6], demo.validation_prompts[:4], Judge.load_embedded().positive_probability,
        samples=2, validation_samples=2, max_new_tokens=8, grid=(0.1, 0.4),
    )  # fmt: skip
    methods = {"CAA": ot.CAA.fit(acts), "ODESteer": ot.ODESteer.fit(acts)}
    return setting, methods, run_study(setting, methods, progress=lambda name: None)


def test_the_study_has_a_row_for_each_method_at_a_strength_that_the_rule_chose(study):
    setting, methods, result = study
    assert [row.name for row in result.rows] == [UNSTEERED, *methods]
    base = result.rows[0]
    assert base.T is None and base.displacement == 0 and base.shift == 0
    for row in result.rows[1:]:
        chosen = Curve(row.trials, result.unsteered_trial).chosen
        assert row.T == chosen.T
        assert [t.displacement for t in row.trials] == list(setting.grid)
        assert row.shift == pytest.approx(row.share - base.share)
        assert row.shift_interval[0] <= row.shift <= row.shift_interval[1]
        assert row.displacement == pytest.approx(chosen.displacement, rel=0.3)
        assert row.reaches is not None and 0 <= row.reaches <= 1
        assert len(row.continuations) == 12
    assert result.trajectory is not None and result.trajectory.h.shape == (11, 6)


def test_the_study_repeats_exactly(study):
    setting, methods, result = study
    again = run_study(setting, methods, progress=lambda name: None)
    for row, other in zip(result.rows, again.rows, strict=True):
        assert row.continuations == other.continuations
        assert (row.T, row.share, row.perplexity, row.trials) == (other.T, other.share, other.perplexity, other.trials)


def test_several_methods_take_turns_over_the_continuations(demo, acts):
    """Each is what its own method alone makes of it, under greedy decoding; turns go on from prompt to prompt."""
    directions = tuple(ot.RandomDirection.fit(acts, seed=seed) for seed in range(2))
    setting = Setting(
        demo.model, 2, demo.prompts[:2], demo.validation_prompts[:2], Judge.load_embedded().positive_probability,
        samples=3, validation_samples=1, max_new_tokens=6, temperature=0.0, grid=(0.8,),
    )  # fmt: skip
    row = run_study(setting, {"random": directions}, progress=lambda name: None).rows[1]
    alone = [
        ot.generate(demo.model, demo.prompts[:2], method, row.T, max_new_tokens=6).continuations
        for method in directions
    ]
    assert alone[0] != alone[1]
    assert row.continuations == [alone[(3 * prompt + turn) % 2][prompt] for prompt in range(2) for turn in range(3)]


def test_the_study_prints_and_draws(study, tmp_path):
    _, methods, result = study
    lines = table(result).splitlines()
    assert len(lines) == 1 + len(result.rows)
    assert all(name in line for name, line in zip([UNSTEERED, *methods], lines[1:], strict=True))
    kept = json.loads(json.dumps(as_json(result)))
    assert [row["name"] for row in kept["rows"]] == [UNSTEERED, *methods]
    plot_study(result, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
