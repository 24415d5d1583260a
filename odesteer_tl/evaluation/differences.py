"""Differences between two rows of a comparison, and whether they are more than noise."""

from dataclasses import dataclass

import torch

from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.results import ComparedRow, over, spread


@dataclass(frozen=True)
class Difference:
    """The difference of the judged shares of two rows at one budget of KL: `mean` and `sd` over the seeds, and the 95 %
    `interval` over prompts, all seeds pooled."""

    mean: float
    sd: float | None
    interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        """In words. A difference counts if the interval excludes 0 and the mean is more than two deviations."""
        clear = not self.interval[0] <= 0 <= self.interval[1] and abs(self.mean) > 2 * (self.sd or 0)
        return ("more" if self.mean > 0 else "less") if clear else "no difference to be seen"

    def __str__(self) -> str:
        points = spread(self.mean, self.sd, scale=100, sign="+")
        interval = f"[{100 * self.interval[0]:+.1f}, {100 * self.interval[1]:+.1f}]"
        return f"{points:>13} {interval:>15}  {self.verdict}"


def difference(more: ComparedRow, less: ComparedRow, budget: float | None = None) -> Difference:
    """The share of `more` minus that of `less` at the budget (None: the first), paired by prompt and seed."""
    pairs = zip(more.at(budget), less.at(budget), strict=True)  # the numbers of samples may differ
    differences = [one.desired.mean(1, keepdim=True) - other.desired.mean(1, keepdim=True) for one, other in pairs]
    means = [float(of_seed.mean()) for of_seed in differences]
    return Difference(*over(means), bootstrap_interval(torch.cat(differences, 1)))
