"""Differences between two rows of a comparison or a sweep, and whether they are more than noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.results import ComparedRow, over, spread

Scores = Sequence[Float[Tensor, " prompts"]]
"""By seed the mean score of each prompt."""


@dataclass(frozen=True)
class Difference:
    """The difference of the scores of two rows, such as judged shares, at one budget of KL: `mean` and `sd` over the
    seeds, and the 95 % `interval` over prompts, all seeds pooled."""

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
    return paired(*([run.desired.mean(1) for run in row.at(budget)] for row in (more, less)))


def paired(more: Scores, less: Scores) -> Difference:
    """The mean score of `more` minus that of `less`, paired by prompt and seed."""
    differences = [one - other for one, other in zip(more, less, strict=True)]
    return Difference(
        *over([float(of_seed.mean()) for of_seed in differences]), bootstrap_interval(torch.stack(differences, 1))
    )
