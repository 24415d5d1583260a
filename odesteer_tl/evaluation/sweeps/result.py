"""What a sweep found: rows, the Pareto front, and the best row within the guardrails."""

from dataclasses import asdict, dataclass
from typing import Any

from odesteer_tl.evaluation.continuations import UNSTEERED
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.evaluation.sweeps.ablated import Ablated
from odesteer_tl.evaluation.sweeps.plan import Plan
from odesteer_tl.evaluation.sweeps.rows import IDLE, Screened, SweptRow, improves, rows_table

FAINT = 0.1
"""Nats of KL below which most steering does too little to be seen in a few texts."""


@dataclass(frozen=True)
class Sweep:
    """The result of `ot.sweep`: its `plan`, the `screening`, `rows`, the unsteered model first, and the `ablation` if
    that was asked for. `str` prints the tables."""

    plan: Plan
    screening: tuple[Screened, ...]
    rows: tuple[SweptRow, ...]
    ablation: Ablated | None = None

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
        """The best row within the guardrails in a sentence, or that there is none; whether it can be told from no
        steering, and how many walks ended before they spent 0.1 nats."""
        try:
            best = self.best()
        except ValueError as none:
            return str(none)
        (low, high), kl = best.interval(), best.measures["kl"]
        said = (
            f"Best within the guardrails: {best.method} at layer {best.layer}, position {best.position}, strength "
            f"{best.strength:g} ({best.unit}={best.value:.3g}): {self.plan.primary} {best.primary:.3f} ({low:.3f} to "
            f"{high:.3f}), {self.rows[0].primary:.3f} without steering, for {kl:.3g} nats of KL."
        )
        if not improves(best, self.rows[0]):
            said += " That is within the noise of no steering: more prompts, samples or seeds would tell."
        faint = sum(row.stop == IDLE and (row.measures["kl"] or 0.0) < FAINT for row in self.rows)
        if faint:
            said += (
                f" Walks that stopped in the noise below {FAINT:g} nats: {faint} of "
                f"{sum(row.stop is not None for row in self.rows)}; begin at a larger strength, or give more samples."
            )
        return said

    def table(self) -> str:
        """All rows in Markdown, with the reasons for which a place stopped."""
        return rows_table(self.rows, self.plan.primary, self.plan.measures)

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
        tables = [self.screening_table(), self.table(), *([] if self.ablation is None else [self.ablation.table()])]
        return "\n\n".join(tables)

    def to_json(self) -> str:
        """Plan, screening, rows and ablation as JSON, with intervals."""
        of: dict[str, Any] = {"plan": asdict(self.plan), "screening": [asdict(one) for one in self.screening]}
        of["rows"] = [row.as_json() for row in self.rows]
        return json_text(of if self.ablation is None else of | {"ablation": self.ablation.as_json()})
