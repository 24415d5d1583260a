"""The ablation of a sweep: h linear or nonlinear × one step or ten at one place, each at the strength that spends one
budget of KL, and what the parts are worth."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from odesteer_tl.evaluation.ablation import FEATURES, STEPS, climbing
from odesteer_tl.evaluation.choose_layer import Place
from odesteer_tl.evaluation.data import FitData
from odesteer_tl.evaluation.differences import Difference, paired
from odesteer_tl.evaluation.entries import Entry
from odesteer_tl.evaluation.root_search import spends
from odesteer_tl.evaluation.separation import separations
from odesteer_tl.evaluation.sweeps.rows import SweptRow, rows_table
from odesteer_tl.methods import ODESteer


def name_of(kind: str, steps: str) -> str:
    """The name of a row."""
    return f"{kind}, {steps}"


ENTRIES: dict[str, Entry] = {
    name_of(kind, steps): climbing(steps, features) for kind, features in FEATURES.items() for steps in STEPS
}
CONTRASTS = {
    f"nonlinear − linear, {steps}": (name_of("nonlinear", steps), name_of("linear", steps)) for steps in STEPS
} | {f"ten steps − one, {kind}": (name_of(kind, "ten steps"), name_of(kind, "one step")) for kind in FEATURES}
"""What is worth asking: more, less."""


@dataclass(frozen=True)
class Ablated:
    """The four `rows`, at the strengths that spend `kl` nats, in the order of `ENTRIES`; `primary` and `measures` as in
    the plan."""

    kl: float
    rows: tuple[SweptRow, ...]
    primary: str
    measures: tuple[str, ...]

    @property
    def differences(self) -> dict[str, Difference]:
        """Of the primary metric, paired by prompt and seed: what nonlinearity is worth, and what ten steps are."""
        scores = {
            row.method: [torch.tensor(of, dtype=torch.float64, device="cpu") for of in row.scores] for row in self.rows
        }
        return {name: paired(scores[more], scores[less]) for name, (more, less) in CONTRASTS.items()}

    def table(self) -> str:
        """Rows and differences in Markdown."""
        lines = [f"Ablation at {self.kl:g} nats of KL:", "", rows_table(self.rows, self.primary, self.measures), ""]
        lines += [f"| difference | {self.primary} | sd over seeds | 95 % over prompts | |", "|---|---|---|---|---|"]
        for name, one in self.differences.items():
            sd = "" if one.sd is None else f"{one.sd:.3f}"
            low, high = one.interval
            lines.append(f"| {name} | {one.mean:+.3f} | {sd} | {low:+.3f} to {high:+.3f} | {one.verdict} |")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain values."""
        differences = {name: asdict(one) | {"verdict": one.verdict} for name, one in self.differences.items()}
        return {"kl": self.kl, "rows": [row.as_json() for row in self.rows], "differences": differences}


def ablated_place(places: Mapping[Place, FitData]) -> Place:
    """Where both h together tell the sides apart best: the largest mean of their cross-validated AUCs, so that neither
    has chosen the place for itself."""
    fits = {kind: partial(ODESteer.fit, features=features) for kind, features in FEATURES.items()}
    found = separations([data.texts.without_sinks(warn=False) for data in places.values()], fits, progress=False)
    means = [fmean(one.auc for one in found[i : i + len(fits)]) for i in range(0, len(found), len(fits))]
    return max(zip(means, places, strict=True), key=lambda pair: pair[0])[1]


def ablated(kl: float, row_at: Callable[[str], SweptRow], primary: str, measures: tuple[str, ...]) -> Ablated:
    """The ablation of finished rows, with the reason where no strength spends the budget."""
    rows = []
    for name in ENTRIES:
        row = row_at(name)
        spent = (cost := row.measures["kl"]) is not None and spends(cost, kl)
        rows.append(row if spent else replace(row, stop=f"no strength spends {kl:g} nats: the nearest"))
    return Ablated(kl, tuple(rows), primary, measures)
