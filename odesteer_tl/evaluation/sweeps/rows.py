"""What stands in a line of a sweep's tables: a place that was screened, and a method at a place and strength."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from odesteer_tl._shapes import Position

PATIENCE = 2
"""Strengths in a row without an improvement."""
IDLE = f"no improvement beyond noise {PATIENCE} times in a row"
"""Why a walk stopped there."""


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
    `unit`, "relative_T" or "T", under the first seed. Where a budget of KL is spent, both are what spends it.
    `measures`: means over seeds, None where one is not finite; `scores`: the primary metric [seeds][prompts]; `broken`:
    guardrails that it breaks; `texts`: what was written, [seeds][prompts × samples], those of a prompt beside each
    other; `stop`: why no larger strength was run, at the last strength of a place."""

    method: str
    layer: int | None
    position: Position | None
    strength: float
    unit: str
    value: float
    measures: dict[str, float | None]
    scores: list[list[float]]
    broken: tuple[str, ...]
    texts: list[list[str]] = field(default_factory=list, repr=False)
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

    def as_json(self) -> dict[str, Any]:
        """The row as plain values without its texts, with the mean and its interval."""
        numbers = asdict(self)
        del numbers["texts"]
        return numbers | {"primary": self.primary, "interval": self.interval()}


def improves(new: SweptRow, old: SweptRow) -> bool:
    """Whether the primary metric exceeds that of `old` by one standard error of the difference over prompts, each the
    mean over seeds."""
    scores = [torch.tensor(row.scores, dtype=torch.float64, device="cpu").mean(0) for row in (new, old)]
    gain = scores[0] - scores[1]
    return float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5


def rows_table(rows: Sequence[SweptRow], primary: str, measures: Sequence[str]) -> str:
    """A line per row in Markdown: the primary metric with its interval, the other measures, and why a place stopped."""
    names = [name for name in measures if name != primary]
    head = ["method", "layer", "position", "strength", "as", f"{primary} (95 %)", *names, "broken", "stop"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        at = [row.layer, row.position, f"{row.strength:g}", f"{row.unit}={row.value:.3g}"]
        place = [""] * 4 if row.layer is None else at
        low, high = row.interval()
        numbers = ["not finite" if (one := row.measures[name]) is None else f"{one:.3f}" for name in names]
        said = [f"{row.primary:.3f} ({low:.3f} to {high:.3f})", *numbers, "; ".join(row.broken), row.stop or ""]
        lines.append(f"| {' | '.join(map(str, [row.method, *place, *said]))} |")
    return "\n".join(lines)
