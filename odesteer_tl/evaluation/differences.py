"""Differences between two rows of a comparison, and what can be said of them."""

from dataclasses import dataclass
from statistics import fmean, stdev

import torch

from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.results import ComparedRow, spread


@dataclass(frozen=True)
class Difference:
    """How many points more of the judged share one row has than another.

    `mean` and `sd` over the seeds, on the test prompts at the strength that each row chose; `interval`: 95 % over
    prompts, all seeds together; `equal`: mean and deviation over the seeds of the trials' shares, which are at equal
    displacements. Rows may choose other strengths under other seeds, so the interval alone says too much.
    """

    mean: float
    sd: float | None
    interval: tuple[float, float]
    equal: tuple[float, float | None]

    @property
    def verdict(self) -> str:
        """In words: a difference is one where the interval leaves 0 out and the mean is more than two deviations."""
        clear = not self.interval[0] <= 0 <= self.interval[1] and abs(self.mean) > 2 * (self.sd or 0)
        return ("more" if self.mean > 0 else "less") if clear else "no difference to be seen"

    def __str__(self) -> str:
        points, equal = (spread(*each, scale=100, sign="+") for each in ((self.mean, self.sd), self.equal))
        interval = f"[{100 * self.interval[0]:+.1f}, {100 * self.interval[1]:+.1f}]"
        return f"{points:>13} {interval:>15} {equal:>13}  {self.verdict}"


def difference(more: ComparedRow, less: ComparedRow) -> Difference:
    """The share of `more` minus that of `less`, paired by prompt and seed."""
    runs = list(zip(more.runs, less.runs, strict=True))
    each = [one.desired - other.desired for one, other in runs]
    trials = [
        fmean(mine.share - theirs.share for mine, theirs in zip(one.trials, other.trials, strict=True))
        for one, other in runs
    ]
    means = [float(found.mean()) for found in each]
    return Difference(*_over(means), bootstrap_interval(torch.cat(each, 1)), _over(trials))


def _over(values: list[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None
