"""What a sweep found: rows, the Pareto front, and the best row within the guardrails."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from odesteer_tl._shapes import Position
from odesteer_tl.evaluation.continuations import UNSTEERED
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.evaluation.sweeps.plan import Plan


@dataclass(frozen=True)
class Screened:
    """The cross-validated AUC of h at a place, with its standard error. `by`: whose h; CAA's for a method without one.
    `kept`: whether texts were generated there."""

    method: str
    layer: int
    position: Position
    auc: float
    error: float
    by: str
    kept: bool


@dataclass(frozen=True)
class SweptRow:
    """A method at a place and strength, over all seeds. `strength` as in the plan; `value` is the same in the method's
    `unit`, "relative_T" or "T", under the first seed. `measures`: means over seeds, None
    where one is not finite; `scores`: the primary metric [seeds][prompts]; `broken`: guardrails that it breaks; `stop`:
    why no larger strength was run, at the last strength of a place."""

    method: str
    layer: int | None
    position: Position | None
    strength: float
    unit: str
    value: float
    measures: dict[str, float | None]
    scores: list[list[float]]
    broken: tuple[str, ...]
    stop: str | None = None

    @property
    def primary(self) -> float:
        """The mean of the scores."""
        return float(torch.tensor(self.scores, dtype=torch.float64, device="cpu").mean())

    def interval(self, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % percentile bootstrap of `primary`: seeds and prompts are both drawn with replacement."""
        scores = torch.tensor(self.scores, dtype=torch.float64, device="cpu")
        generator = torch.Generator().manual_seed(seed)
        n, m = scores.shape
        rows = torch.randint(n, (resamples, n), generator=generator, device="cpu")
        columns = torch.randint(m, (resamples, m), generator=generator, device="cpu")
        means = scores[rows.unsqueeze(2), columns.unsqueeze(1)].mean((1, 2))
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64, device="cpu")).tolist()
        return low, high


@dataclass(frozen=True)
class Sweep:
    """The result of `ot.sweep`: its `plan`, the `screening`, and `rows`, the unsteered model first. `str` prints the
    table."""

    plan: Plan
    screening: tuple[Screened, ...]
    rows: tuple[SweptRow, ...]

    def pareto(self) -> list[SweptRow]:
        """The rows that no other one dominates, cheapest first: none has as much of the primary metric, or more, at as
        little KL, or less, and differs in one of them."""
        points = [(row.measures["kl"], row.primary, row) for row in self.rows if row.measures["kl"] is not None]
        front = [
            (kl, row)
            for kl, primary, row in points
            if not any(k <= kl and p >= primary and (k, p) != (kl, primary) for k, p, _ in points)  # type: ignore[operator]
        ]
        return [row for _, row in sorted(front, key=lambda pair: pair[0] or 0.0)]

    def best(self) -> SweptRow:
        """The steered row within all guardrails with the largest primary metric; of equals the one with the least KL.

        It is chosen by the numbers that it is reported with, which flatters it: run it again on prompts of its own.
        Raises ValueError where every row breaks a guardrail.
        """
        good = [row for row in self.rows if row.method != UNSTEERED and not row.broken]
        if not good:
            raise ValueError("Every steered row breaks a guardrail: give smaller strengths, or other guardrails.")
        return max(good, key=lambda row: (row.primary, -(row.measures.get("kl") or 0.0)))

    def conclusion(self) -> str:
        """The best row within the guardrails in a sentence, or that there is none."""
        try:
            best = self.best()
        except ValueError as none:
            return str(none)
        (low, high), kl = best.interval(), best.measures["kl"]
        return (
            f"Best within the guardrails: {best.method} at layer {best.layer}, position {best.position}, strength "
            f"{best.strength:g} ({best.unit}={best.value:.3g}): {self.plan.primary} {best.primary:.3f} ({low:.3f} to "
            f"{high:.3f}), {self.rows[0].primary:.3f} without steering, for {kl:.3g} nats of KL."
        )

    def table(self) -> str:
        """All rows in Markdown, with the reasons for which a place stopped."""
        names = [name for name in self.plan.measures if name != self.plan.primary]
        head = [
            "method",
            "layer",
            "position",
            "strength",
            "as",
            f"{self.plan.primary} (95 %)",
            *names,
            "broken",
            "stop",
        ]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in self.rows:
            at = [row.layer, row.position, f"{row.strength:g}", f"{row.unit}={row.value:.3g}"]
            place = [""] * 4 if row.layer is None else at
            low, high = row.interval()
            numbers = ["not finite" if (one := row.measures[name]) is None else f"{one:.3f}" for name in names]
            said = [f"{row.primary:.3f} ({low:.3f} to {high:.3f})", *numbers, "; ".join(row.broken), row.stop or ""]
            lines.append(f"| {' | '.join(map(str, [row.method, *place, *said]))} |")
        return "\n".join(lines)

    def screening_table(self) -> str:
        """All places with their AUC in Markdown."""
        lines = ["| method | layer | position | AUC of h | generated |", "|---|---|---|---|---|"]
        for one in self.screening:
            by = "" if one.by == one.method else f", of {one.by}"
            lines.append(
                f"| {one.method} | {one.layer} | {one.position} | {one.auc:.3f} ± {one.error:.3f}{by} | "
                f"{'yes' if one.kept else ''} |"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.screening_table()}\n\n{self.table()}"

    def to_json(self) -> str:
        """Plan, screening and rows as JSON, with intervals."""
        rows: Sequence[dict[str, Any]] = [
            asdict(row) | {"primary": row.primary, "interval": row.interval()} for row in self.rows
        ]
        return json_text(
            {"plan": asdict(self.plan), "screening": [asdict(one) for one in self.screening], "rows": rows}
        )
