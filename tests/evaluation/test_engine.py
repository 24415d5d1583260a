"""The engine under `compare` and `sweep`: the same cell has the same figures from both, and is fitted once."""

from types import SimpleNamespace
from typing import Any

import pytest
from instances import fewer, without_shape_checks

import odesteer_tl as ot
from odesteer_tl.evaluation.judge import Judge

JUDGE = Judge.load_embedded().positive_probability
WRITTEN: dict[str, Any] = {"judge": JUDGE, "seeds": (0, 1), "samples": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def few(half):
    return fewer(half, texts=12, validation_prompts=3)


def lengths(texts):
    return sum(map(len, texts)) / len(texts)


@without_shape_checks()
def test_what_compare_finds_at_a_budget_a_sweep_finds_at_that_strength(few):
    """Also of directions that the seed draws: fit and sampling have one seed in both."""
    methods = {"ODESteer": ot.ODESteer, "random": ot.RandomDirection}
    compared = ot.compare(few.model, few, methods, layer=1, position="mean", **WRITTEN)
    swept: dict[str, Any] = {"layers": [1], "positions": ["mean"], "keep": 1, "metrics": {"lengths": lengths}}
    for name, method in methods.items():
        runs = compared.row(name).at()
        for run in runs:
            assert run.level is not None
            one: dict[str, Any] = swept | WRITTEN | {"seeds": (run.seed,), "strengths": {name: [run.level.relative_T]}}
            found = ot.sweep(few.model, few, {name: method}, **one)
            (before, row), base = found.rows, compared.rows[0].runs[run.seed]
            assert before.measures["share"] == base.share and before.measures["distinct2"] == base.distinct2
            assert row.value == run.level.relative_T
            assert row.measures["lengths"] == lengths(run.continuations)
            for figure in ("share", "perplexity_ratio", "distinct2"):
                assert row.measures[figure] == getattr(run, figure)
            assert row.measures["kl"] == pytest.approx(run.kl, rel=1e-5)  # other rows share its batches
        assert (runs[0].level == runs[1].level) == (name == "ODESteer")


@pytest.fixture(scope="module")
def asked(few):
    """The data and options of a small sweep without a judge."""
    data = SimpleNamespace(desired=few.desired, undesired=few.undesired, prompts=few.prompts[:2])
    options: dict[str, Any] = {"layers": [1], "strengths": (0.1, 0.2), "primary": "lengths", "keep": 1, "seeds": (0, 1)}
    return data, options | {"metrics": {"lengths": lengths}, "samples": 1, "max_new_tokens": 2}


def test_what_no_seed_changes_is_fitted_once(few, asked):
    fitted, (data, options) = [], asked

    def fit(acts):
        fitted.append(len(acts.desired))
        return ot.CAA.fit(acts)

    ot.sweep(few.model, data, {"CAA": fit}, **options)
    assert fitted.count(len(few.desired)) == 1  # two strengths, two seeds; the folds have fewer texts


def test_a_sweep_refuses_a_method_of_another_place_and_a_loop(few, asked):
    data, options = asked
    late = ot.CAA.fit(ot.collect(few.model, few.desired, few.undesired, layer=2))
    with pytest.raises(
        ValueError, match=r"'late' cannot be compared: it was fitted at blocks\.2\.hook_resid_post, but"
    ):
        ot.sweep(few.model, data, {"late": lambda acts: late}, **options)
    loop = ot.SPID.fit(few.model, few.desired, few.undesired)
    with pytest.raises(ValueError, match="sweep takes methods of one site"):
        ot.sweep(few.model, data, {"loop": lambda acts: loop}, **options)
