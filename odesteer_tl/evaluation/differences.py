"""Differences between two rows of a comparison, and whether they are more than noise."""

from dataclasses import dataclass
from statistics import fmean, stdev

import torch

from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.results import ComparedRow, spread


@dataclass(frozen=True)
class Difference:
    """The difference of the judged shares of two rows.

    `mean` and `sd` over the seeds, on the test prompts at the strength chosen for each row; `interval`: 95 % over
    prompts, all seeds pooled; `equal`: mean and deviation over the seeds of the difference at the trials, which are at
    equal displacements. The chosen strengths vary between seeds, so the interval alone is too narrow.
    """

    mean: float
    sd: float | None
    interval: tuple[float, float]
    equal: tuple[float, float | None]

    @property
    def verdict(self) -> str:
        """In words. A difference counts if the interval excludes 0 and the mean is more than two deviations."""
        clear = not self.interval[0] <= 0 <= self.interval[1] and abs(self.mean) > 2 * (self.sd or 0)
        return ("more" if self.mean > 0 else "less") if clear else "no difference to be seen"

    def __str__(self) -> str:
        points, equal = (spread(*values, scale=100, sign="+") for values in ((self.mean, self.sd), self.equal))
        interval = f"[{100 * self.interval[0]:+.1f}, {100 * self.interval[1]:+.1f}]"
        return f"{points:>13} {interval:>15} {equal:>13}  {self.verdict}"


def difference(more: ComparedRow, less: ComparedRow) -> Difference:
    """The share of `more` minus that of `less`, paired by prompt and seed."""
    runs = list(zip(more.runs, less.runs, strict=True))
    differences = [first.desired - second.desired for first, second in runs]
    trials = [
        fmean(mine.share - theirs.share for mine, theirs in zip(first.trials, second.trials, strict=True))
        for first, second in runs
    ]
    means = [float(of_seed.mean()) for of_seed in differences]
    return Difference(*_over(means), bootstrap_interval(torch.cat(differences, 1)), _over(trials))


def _over(values: list[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None
