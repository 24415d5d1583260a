"""`odesteer-tl compare` as a whole, once, on few prompts: every cell, the seeds, the ablation and the differences."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from instances import activations, planted, shorter, without_shape_checks
from sklearn.metrics import roc_auc_score

import odesteer_tl as ot
from odesteer_tl.evaluation import entries as entries_module
from odesteer_tl.evaluation.continuations import UNSTEERED
from odesteer_tl.evaluation.data import material_of
from odesteer_tl.evaluation.differences import Difference, difference
from odesteer_tl.evaluation.entries import (
    LITERATURE,
    LOOPS,
    PRAISE,
    controls,
)
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.reports import ablation
from odesteer_tl.evaluation.reports import paper as paper_module
from odesteer_tl.evaluation.reports.ablation import Barriers, agreement, barriers_of
from odesteer_tl.evaluation.tables import spread
from odesteer_tl.flows import networks
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear, Polynomial
from odesteer_tl.flows.grid_search import Trial, folds_of, tune

SEEDS = 2
COUNTS = {"samples": 2, "max_new_tokens": 3}
JUDGE = Judge.load_embedded().positive_probability


@pytest.fixture(scope="module")
def small(half, tmp_path_factory):
    """The whole of `odesteer-tl compare`, on few prompts and few candidates, with what it printed."""
    picture = tmp_path_factory.mktemp("compare") / "picture.png"
    counts = paper_module.Counts(prompts=3, validation_prompts=2, seeds=SEEDS, **COUNTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_module, "QUICK", counts)
        patch.setattr(paper_module, "load_demo", lambda model: shorter(half))
        patch.setattr(ablation, "tune", few_candidates)
        patch.setitem(entries_module.FEW, "n_jacobians", 2)
        patch.setitem(entries_module.FEW, "context", 4)
        patch.setattr(networks, "LEAST_STEPS", 100)
        lines: list[str] = []
        # the texts are few, and every fit and every continuation is checked elsewhere: this is long
        with without_shape_checks(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The shift")
            found = paper_module.run_contest(quick=True, layer=2, picture=picture, out=lines.append)
    return found, "\n".join(lines), picture


def few_candidates(acts, features=None, seed=0):
    curved = [Polynomial(), Polynomial(2, 1.0), Polynomial(3, 1.0)]
    return tune(acts, curved if features is None else features, Cs=(1, 10), folds=2, seed=seed)


NAMES = [UNSTEERED, *LITERATURE, *LOOPS, *controls(PRAISE)]


def test_every_row_is_there_with_a_run_for_each_seed_at_one_budget(small):
    found, _, picture = small
    assert [row.name for row in found.rows][: len(NAMES)] == NAMES
    assert len(found.rows) == len(NAMES) + 6 and not found.left_out  # six cells of the ablation have rows of their own
    for row in found.rows:
        assert [run.seed for run in row.runs] == list(range(SEEDS))
        for run, base in zip(row.runs, found.rows[0].runs, strict=True):
            assert (run.level is None) == (row.name == UNSTEERED)
            assert run.desired.shape == (3, COUNTS["samples"])
            assert run.shift == pytest.approx(run.share - base.share, abs=1e-12)
            if run.level is not None:
                assert run.level.budget == paper_module.BUDGET == 0.1
                assert run.level.reached == (abs(run.level.kl / 0.1 - 1) <= 0.05)
            figures = [run.share, run.perplexity_ratio, run.distinct1, run.distinct2, run.distinct3]
            assert all(math.isfinite(each) for each in figures) and run.perplexity_ratio > 0
    spent = {row.name: row.runs[0].level.reached for row in found.rows[1:]}
    assert spent["CAA"] and spent["ODESteer"] and spent["random direction"]
    base = found.rows[0].runs[0]
    assert (base.kl, base.displacement, base.shift, base.perplexity_ratio) == (0, 0, 0, 1)
    assert all(run.level.prefix in PRAISE and run.level.strength is None for run in found.row("prompt only").runs)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_no_cell_is_blank_and_none_holds_a_filler(small):
    found, said, _ = small
    blocks = found.table(NAMES).split("\n\n")
    texts, checks = blocks[0].splitlines()[2:], blocks[1].splitlines()[1:]
    assert [line[:20].rstrip(" †‡") for line in texts] == NAMES
    steered = [name for name in NAMES if name not in (UNSTEERED, "prompt only")]
    assert [line[:20].strip() for line in checks] == steered
    for line in texts:  # strength with or without ‖a‖, moved (not of a prompt), tokens/s, and seven times mean ± sd
        extra = ("‖a‖" in line) - line.startswith("prompt only")
        assert len(line[20:].split()) == 3 + 7 * 3 + extra, line
    for line in checks:  # eight numbers, "a → b" for h; four times "no h" where there is none
        assert len(line[20:].split()) == (14 if "no h" in line else 12), line
    none = ("random direction", "TruthFlow", *LOOPS)
    assert ["no h" in line for line in checks] == [name in none for name in steered]
    for word in ("nan", "inf ", "None", " - "):
        assert word not in said
    for sentence in (found.table(NAMES), "its published numbers are not reproduced here", "cos(v_linear, v_nonlinear)"):
        assert sentence in said
    assert said.count("Does tuned nonlinearity pay? ") == 1
    verdicts = [line for line in said.splitlines() if line.endswith(("more", "less", "to be seen")) and "[" in line]
    cautions = f"{len(verdicts)} are looked at without correction, and a deviation over two seeds says little."
    assert len(verdicts) == 10 and cautions in " ".join(said.split())


def test_the_figures_are_numpy_s_mean_and_deviation_over_seeds(small):
    found, _, _ = small
    for row in found.rows:
        for name in ("share", "shift", "perplexity_ratio", "distinct1", "distinct3"):
            values = [getattr(run, name) for run in row.runs]
            assert row.over_seeds(name) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert spread(0.123, 0.045, scale=100, sign="+") == "+12.3 ± 4.5" and spread(1.0, None, digits=2) == "1.00"


def test_the_numbers_are_json(small):
    found, _, _ = small
    kept = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [row["name"] for row in kept["rows"]] == [row.name for row in found.rows]
    assert all(len(row["runs"]) == SEEDS for row in kept["rows"])


def test_the_same_seeds_give_the_same_numbers_and_chance_is_drawn_anew_for_each(small, half):
    found, _, _ = small
    few = replace(shorter(half), prompts=half.prompts[:3], validation_prompts=half.validation_prompts[:2])
    names = ["CAA", "shuffled labels", "random direction", "prompt only"]
    position = "mean" if "position 'mean'" in found.place else "last"
    again = ot.compare(
        half.model, few, {name: (LITERATURE | controls(PRAISE))[name] for name in names}, judge=JUDGE,
        seeds=range(SEEDS), layer=2, position=position, **COUNTS,
    )  # fmt: skip
    for name in names:
        for run, other in zip(found.row(name).runs, again.row(name).runs, strict=True):
            assert torch.equal(run.desired, other.desired)
            same = replace(run, desired=other.desired, tokens_per_second=other.tokens_per_second)
            assert same.__dict__ == other.__dict__
    first, second = found.row("RE-Control").runs  # its T depends on how steep the network of a seed is
    assert first.level.T != second.level.T
    first, second = found.row("CAA").runs
    assert first.level == second.level


def test_linear_cells_differ_in_their_features_alone(small):
    found, _, _ = small
    for steps, nonlinear in (("one step", "one-step ODESteer"), ("ten steps", "ODESteer")):
        linear, other = found.row(f"paper linear, {steps}").method, found.row(nonlinear).method
        assert type(linear) is type(other) and linear.flow.steps == other.flow.steps == (1 if "one" in steps else 10)
        assert linear.barrier.features == Linear(normalize=True)
    a = activations(9, d_model=256, dtype=torch.float32)
    assert agreement(linear, found.row("paper linear, one step").method, a) == pytest.approx(1, abs=1e-5)
    cosine = torch.cosine_similarity(linear.vector_field(a), other.vector_field(a), dim=1).mean()
    assert agreement(linear, other, a) == pytest.approx(float(cosine))


def test_the_paper_s_values_and_the_tuned_ones_are_measured_on_the_same_folds():
    acts = planted()
    paper, tuned = barriers_of(acts, seed=2)
    assert (paper.linear.features, paper.nonlinear.features) == (Linear(), Polynomial())
    assert paper.linear.C == paper.nonlinear.C == 1.0
    for each in (paper.linear, paper.nonlinear, tuned.linear, tuned.nonlinear):
        expected = []
        for fit, held in folds_of(acts, seed=2):
            h = LogRatioBarrier.fit(fit, each.features, C=each.C)
            labels = [1] * len(held.desired) + [0] * len(held.undesired)
            expected.append(roc_auc_score(labels, h.value(torch.cat([held.desired, held.undesired]))))
        assert each.aucs == pytest.approx(expected, abs=0.01)  # one pair of a fold's 108 in the order of another
        assert (each.auc, each.sd) == pytest.approx((np.mean(each.aucs), np.std(each.aucs, ddof=1)))
    assert tuned.linear.auc >= paper.linear.auc and tuned.nonlinear.auc >= paper.nonlinear.auc
    gains = np.subtract(tuned.nonlinear.aucs, tuned.linear.aucs)
    assert tuned.gain == pytest.approx((gains.mean(), gains.std(ddof=1)))


def test_a_linear_h_regularised_alike_is_the_linear_part_of_the_nonlinear_one():
    """With a small γ/c₀ the nonlinearity vanishes, and what is left is a linear h with the C that `alike` says."""
    acts, features = planted(), Polynomial(2, gamma=1e-3, coef0=1.0)
    alike = Barriers("tuned", Trial(Linear(), 1.0, ()), Trial(features, 50.0, ())).alike
    assert alike == pytest.approx(0.1)
    curved, linear = (ot.ODESteer.fit(acts, features=f, C=C) for f, C in ((features, 50.0), (Linear(), alike)))
    a = activations(20, dtype=torch.float32)
    assert agreement(curved, linear, a) > 0.9999
    assert agreement(curved, ot.ODESteer.fit(acts, features=Linear(), C=100.0), a) < 0.99


def test_material_is_read_where_it_is_asked(demo):
    few = replace(
        demo, pairs=[], desired=demo.desired[:3], undesired=demo.undesired[:2],
        validation_desired=demo.validation_desired[:2], validation_undesired=demo.validation_undesired[:1],
    )  # fmt: skip
    found = material_of(demo.model, few, 2, "mean")
    expected = ot.collect(demo.model, few.desired, few.undesired, layer=2, position="mean")
    assert found.texts.layer == 2 and found.pairs is None and len(found.held_out.undesired) == 1
    assert torch.equal(found.texts.desired, expected.desired)


@pytest.mark.parametrize(
    ("mean", "sd", "interval", "verdict"),
    [
        (0.1, 0.02, (0.03, 0.2), "more"),
        (-0.1, 0.02, (-0.2, -0.03), "less"),
        (0.1, 0.02, (-0.01, 0.2), "no difference to be seen"),
        (0.1, 0.06, (0.03, 0.2), "no difference to be seen"),
        (0.1, None, (0.03, 0.2), "more"),
    ],
)
def test_a_difference_is_one_over_prompts_and_over_seeds(mean, sd, interval, verdict):
    found = Difference(mean, sd, interval)
    assert found.verdict == verdict and str(found).endswith(verdict)


def test_differences_are_paired_by_prompt_and_seed(small):
    found, _, _ = small
    more, less = found.row("ODESteer"), found.row("CAA")
    made = difference(more, less)
    each = [one.share - other.share for one, other in zip(more.runs, less.runs, strict=True)]
    assert (made.mean, made.sd) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    both = [np.array([run.desired.mean(1) for run in row.runs]).mean(0) for row in (more, less)]  # a number per prompt
    drawn = torch.as_tensor(both[0] - both[1]).unsqueeze(1)
    assert made.interval == pytest.approx(bootstrap_interval(drawn))  # prompts are drawn, with all their seeds
    none = difference(more, more)
    assert (none.mean, none.interval, none.verdict) == (0, (0, 0), "no difference to be seen")


def test_rows_of_other_numbers_of_samples_are_compared_by_prompt(small):
    found, _, _ = small
    more, less = found.row("ODESteer"), found.row("CAA")
    first = replace(more, runs=tuple(replace(run, desired=run.desired[:, :1]) for run in more.runs))
    each = [float(one.desired[:, 0].mean()) - other.share for one, other in zip(more.runs, less.runs, strict=True)]
    assert difference(first, less).mean == pytest.approx(np.mean(each))
