"""Differences between two rows of a comparison, and what can be said of them."""

from dataclasses import dataclass
from statistics import fmean, stdev

import torch

from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.rows import ComparedRow, spread


@dataclass(frozen=True)
class Difference:
    """How many points more of the judged share one row has than another: mean, deviation over the seeds, and a 95 %
    interval over prompts, each prompt's continuations of all seeds taken together."""

    mean: float
    sd: float | None
    interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        """In words, by the interval alone."""
        if self.interval[0] > 0:
            return "more"
        return "less" if self.interval[1] < 0 else "no difference to be seen"

    def __str__(self) -> str:
        points = spread(self.mean, self.sd, scale=100, sign="+")
        return f"{points} points [{100 * self.interval[0]:+.1f}, {100 * self.interval[1]:+.1f}]: {self.verdict}"


def difference(more: ComparedRow, less: ComparedRow) -> Difference:
    """The share of `more` minus that of `less`, paired by prompt and seed."""
    each = [one.desired - other.desired for one, other in zip(more.runs, less.runs, strict=True)]
    means = [float(found.mean()) for found in each]
    return Difference(fmean(means), stdev(means) if len(means) > 1 else None, bootstrap_interval(torch.cat(each, 1)))
