"""A row of a comparison: its fit, its effect on activations, and the results of its texts under every seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from odesteer_tl.evaluation.checks import Conditions
from odesteer_tl.evaluation.runs import Run
from odesteer_tl.methods import Method

Figure = Literal["kl", "share", "shift", "perplexity_ratio", "distinct1", "distinct2", "distinct3"]
"""The figures of a row's continuations."""

MARKS = {
    "†": "under some seed no strength, or no prefix, spends the budget: the one that comes nearest was taken, see KL",
    "‡": "the displacement of the checks cannot be reached: the largest was taken, see moved",
}


@dataclass(frozen=True, eq=False)
class ComparedRow:
    """One row: `fitted_on` texts, pairs, queries, model or elsewhere; the method of the first seed; a run per seed and
    budget if texts were generated.

    `method` and `conditions` are None for rows without steering; for methods that take turns they are the first
    method's. `seconds`: the time of the fit, None for a method that was already fitted.
    """

    name: str
    fitted_on: str
    method: Method | None
    seconds: float | None
    conditions: Conditions | None
    runs: tuple[Run, ...] = ()

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets of KL of the runs, in nats; none for the unsteered model."""
        return tuple(dict.fromkeys(run.level.budget for run in self.runs if run.level is not None))

    def at(self, budget: float | None = None) -> list[Run]:
        """The runs at one budget, a run per seed; None: the first. Those of the unsteered model belong to every budget.

        Raises ValueError for a budget that was not run.
        """
        wanted = budget if budget is not None or not self.budgets else self.budgets[0]
        runs = [run for run in self.runs if run.level is None or run.level.budget == wanted]
        if not runs:
            raise ValueError(f"{self.name!r} was run at budgets of {self.budgets} nats, not at {budget}.")
        return runs

    def over_seeds(self, figure: Figure, budget: float | None = None) -> tuple[float, float | None]:
        """Mean and sample standard deviation over the seeds; the deviation of one seed is None."""
        return over([getattr(run, figure) for run in self.at(budget)])

    def mark(self, budget: float | None = None) -> str:
        """ " †" where under some seed the budget is not spent, else nothing."""
        return " †" * any(run.level is not None and not run.level.reached for run in self.at(budget))


def over(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the deviation of one value is None."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan if len(values) > 1 else None
    return fmean(values), stdev(values) if len(values) > 1 else None


def spread(mean: float, sd: float | None, *, scale: float | int = 1, digits: int = 1, sign: str = "") -> str:
    """mean ± sd, or the mean alone if sd is None; a number that rounds to 0 has no minus sign."""
    text = f"{scale * mean:{sign}z.{digits}f}"
    return text if sd is None else f"{text} ± {scale * sd:.{digits}f}"
