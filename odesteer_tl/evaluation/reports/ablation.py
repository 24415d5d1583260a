"""The paper's Table 3 in small: linear against nonlinear h, one step against ten, at its values and at tuned ones.

Linear, and the paper's values, are those of `evaluation.ablation`. Tuned means that C, and for the nonlinear h also
degree, γ and c₀, are chosen by cross-validated AUC on the texts that methods are fitted on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

from odesteer_tl._shapes import Samples
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.ablation import FEATURES, STEPS, climbing
from odesteer_tl.evaluation.data import Material
from odesteer_tl.evaluation.differences import Difference, difference
from odesteer_tl.evaluation.entries import Entry
from odesteer_tl.evaluation.results import ComparedRow, spread
from odesteer_tl.evaluation.tables import Comparison, wrapped
from odesteer_tl.flows.features import Linear, Polynomial, Recipe
from odesteer_tl.flows.grid_search import Trial, tune
from odesteer_tl.methods import Method, ODESteer, PointwiseMethod


@dataclass(frozen=True)
class Barriers:
    """A linear and a nonlinear barrier, at the paper's or at tuned `values`."""

    values: str
    linear: Trial
    nonlinear: Trial

    @property
    def gain(self) -> tuple[float, float]:
        """The gain in AUC of the nonlinear barrier: mean and deviation over the folds, which are the same for both."""
        gains = [more - less for more, less in zip(self.nonlinear.aucs, self.linear.aucs, strict=True)]
        return fmean(gains), stdev(gains)

    @property
    def alike(self) -> float:
        """The C that regularises a linear h like the linear part of the nonlinear h, its kernel d γ c₀ᵈ⁻¹ xᵀy."""
        features = self.nonlinear.features
        assert isinstance(features, Polynomial)  # all candidates are polynomial
        return self.nonlinear.C * features.degree * features.gamma * features.coef0 ** (features.degree - 1)

    def row(self, kind: str, steps: str) -> str:
        """The name of a cell's row in the comparison. Nonlinear ones at the paper's values are in Table 2."""
        if (self.values, kind) == ("paper", "nonlinear"):
            return {"one step": "one-step ODESteer", "ten steps": "ODESteer"}[steps]
        return f"{self.values} {kind}, {steps}"


def barriers_of(acts: ContrastiveActivations, seed: int = 0) -> tuple[Barriers, Barriers]:
    """The barriers at the paper's values, which are among the candidates, and the tuned ones; folds by `seed`."""
    linear, nonlinear = tune(acts, features=[Linear()], seed=seed), tune(acts, seed=seed)
    return (
        Barriers("paper", linear.trial(FEATURES["linear"], 1.0), nonlinear.trial(FEATURES["nonlinear"], 1.0)),
        Barriers("tuned", *(tuned.trial(tuned.features, tuned.C) for tuned in (linear, nonlinear))),
    )


def entries_of(barriers: tuple[Barriers, ...], present: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries of the cells that are not yet `present`."""
    rows = {
        pair.row(kind, steps): climbing(steps, getattr(pair, kind).features, getattr(pair, kind).C)
        for pair in barriers
        for kind in FEATURES
        for steps in STEPS
    }
    return {name: row for name, row in rows.items() if name not in present}


@dataclass(frozen=True)
class Ablation:
    """The results: the barriers; per values the mean cosine of linear and nonlinear velocities over held-out
    activations, with the linear h as fitted and with one regularised like the nonlinear h; and differences between
    cells."""

    barriers: tuple[Barriers, Barriers]
    cosines: dict[str, tuple[float, float]]
    differences: dict[str, Difference]

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain values."""
        candidates = {
            f"{pair.values} {kind}": {"features": str(trial.features), "C": trial.C, "aucs": trial.aucs}
            for pair in self.barriers
            for kind, trial in (("linear", pair.linear), ("nonlinear", pair.nonlinear))
        }
        differences = {name: vars(result) | {"verdict": result.verdict} for name, result in self.differences.items()}
        return {"candidates": candidates, "cosines": self.cosines, "differences": differences}


def ablation_of(comparison: Comparison, barriers: tuple[Barriers, Barriers], material: Material) -> Ablation:
    """Compare the cells: the effects of nonlinearity, of tuning and of ten steps."""
    a = torch.cat([material.held_out.desired, material.held_out.undesired]).float()
    cosines, compared_rows, (paper, tuned) = {}, {}, barriers
    for pair in barriers:
        linear, nonlinear = (comparison.row(pair.row(kind, "ten steps")).method for kind in ("linear", "nonlinear"))
        alike = ODESteer.fit(material.texts, features=Linear(), C=pair.alike)
        cosines[pair.values] = (agreement(linear, nonlinear, a), agreement(alike, nonlinear, a))
        for steps in STEPS:
            name = f"Nonlinear − linear, {pair.values} values, {steps}"
            compared_rows[name] = pair.row("nonlinear", steps), pair.row("linear", steps)
    for kind in ("linear", "nonlinear"):
        for steps in STEPS:
            compared_rows[f"Tuned − paper's values, {kind}, {steps}"] = tuned.row(kind, steps), paper.row(kind, steps)
    for pair in barriers:
        name = f"Ten steps − one, nonlinear, {pair.values} values"
        compared_rows[name] = pair.row("nonlinear", "ten steps"), pair.row("nonlinear", "one step")
    differences = {
        name: difference(comparison.row(more), comparison.row(less)) for name, (more, less) in compared_rows.items()
    }
    return Ablation(barriers, cosines, differences)


def agreement(one: Method | None, other: Method | None, a: Samples) -> float:
    """Mean cosine of the velocities of two methods over activations."""
    v, w = (method.vector_field(a) for method in (one, other) if isinstance(method, PointwiseMethod))
    return float(torch.cosine_similarity(v, w, dim=1).mean())


def ablation_table(comparison: Comparison, ablation: Ablation) -> str:
    """The cells, the cosines of linear and nonlinear velocities, the differences, and whether nonlinearity pays."""
    lines = [
        f"{'values':<7}{'h':<10}{'steps':<12}{'features':<20}{'C':>4} {'AUC, folds':>13} {'held out':>8} "
        f"{'KL':>13} {'moved':>6} {'desired %':>11} {'shift':>12} {'ppl ratio':>12}"
    ]
    for pair in ablation.barriers:
        for kind, candidate in (("linear", pair.linear), ("nonlinear", pair.nonlinear)):
            for steps in STEPS:
                row = comparison.row(pair.row(kind, steps))
                lines.append(f"{pair.values:<7}{kind:<10}{steps:<12}{_cell(candidate, row)}")
    lines.append("")
    for pair in ablation.barriers:
        plain, alike = ablation.cosines[pair.values]
        lines.append(
            f"cos(v_linear, v_nonlinear), {pair.values} values: {plain:.4f}; "
            f"with the linear h regularised as the other's linear part, C = {pair.alike:g}: {alike:.4f}"
        )
    lines += ["", f"{'points of the judged share':<46}{'difference':>13} {'95 %':>15}"]
    lines += [*(f"{name:<46}{difference}" for name, difference in ablation.differences.items())]
    return "\n".join([*lines, "", wrapped(_answer(comparison, ablation))])


def _cell(candidate: Trial, row: ComparedRow) -> str:
    moved = row.at()[0].displacement or 0.0
    return (
        f"{_words(candidate.features):<20}{candidate.C:>4g} "
        f"{spread(candidate.auc, candidate.sd, digits=3):>13} {_auc(row):>8.3f} "
        f"{spread(*row.over_seeds('kl'), digits=3):>13} {moved:>6.3f} "
        f"{spread(*row.over_seeds('share'), scale=100):>11} "
        f"{spread(*row.over_seeds('shift'), scale=100, sign='+'):>12} "
        f"{spread(*row.over_seeds('perplexity_ratio'), digits=2):>12}"
    )


def _answer(comparison: Comparison, ablation: Ablation) -> str:
    """Whether tuned nonlinearity pays, against a linear h that was tuned on the same folds."""
    _, tuned = ablation.barriers
    differences = {steps: ablation.differences[f"Nonlinear − linear, tuned values, {steps}"] for steps in STEPS}
    verdicts = {steps: result.verdict for steps, result in differences.items()}
    points = {steps: spread(result.mean, result.sd, scale=100, sign="+") for steps, result in differences.items()}
    pays = set(verdicts.values()) == {"more"}
    held_out = [_auc(comparison.row(tuned.row(kind, "ten steps"))) for kind in ("nonlinear", "linear")]
    return (
        f"Does tuned nonlinearity pay? {'Yes.' if pays else 'Not shown.'} Against a linear h tuned on the same folds "
        f"its AUC is {spread(*tuned.gain, digits=3, sign='+')} on those folds, as the best of more candidates, and "
        f"{held_out[0] - held_out[1]:+.3f} on held-out texts. Judged as desired: "
        f"{'; '.join(f'{steps}, {verdict} ({points[steps]} points)' for steps, verdict in verdicts.items())}."
    )


def _auc(row: ComparedRow) -> float:
    assert row.conditions is not None and row.conditions.auc is not None  # every cell is a flow that climbs an h
    return row.conditions.auc


def _words(recipe: Recipe) -> str:
    if isinstance(recipe, Polynomial):
        return f"deg {recipe.degree}, γ {recipe.gamma:g}, c₀ {recipe.coef0:g}"
    return "a/‖a‖" if isinstance(recipe, Linear) else type(recipe).__name__
