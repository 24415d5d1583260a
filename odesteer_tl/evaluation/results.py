"""A row of a comparison: its fit, its effect on activations, and the results of its texts under every seed."""

from dataclasses import dataclass
from statistics import fmean, median_low, stdev
from typing import Literal

from odesteer_tl.evaluation.checks import Conditions
from odesteer_tl.evaluation.runs import Run
from odesteer_tl.evaluation.strength import LEAST_DISTINCT, MOST_PERPLEXITY
from odesteer_tl.methods import Method

Figure = Literal["share", "shift", "perplexity_ratio", "distinct1", "distinct2", "distinct3"]
"""The figures of a row's continuations."""

MARKS = {
    "†": f"under some seed no strength was within the bounds (perplexity ≤ {MOST_PERPLEXITY}×, Dist-2 ≥ "
    f"{LEAST_DISTINCT}×): the weakest was taken",
    "‡": "does not reach every displacement: the nearest one that it reaches was tried instead",
}


@dataclass(frozen=True, eq=False)
class ComparedRow:
    """One row: `fitted_on` texts, pairs, queries, model or elsewhere; the method of the first seed; a run per seed if
    texts were generated.

    `method` and `conditions` are None for rows without steering; for methods that take turns they are the first
    method's. `seconds`: the time of the fit, None for a method that was already fitted.
    """

    name: str
    fitted_on: str
    method: Method | None
    seconds: float | None
    conditions: Conditions | None
    runs: tuple[Run, ...] = ()

    def over_seeds(self, figure: Figure) -> tuple[float, float | None]:
        """Mean and sample standard deviation over the seeds; the deviation of one seed is None."""
        values = [getattr(run, figure) for run in self.runs]
        return fmean(values), stdev(values) if len(values) > 1 else None

    @property
    def typical(self) -> Run:
        """The run with the median strength; the smaller of two middle ones."""
        if self.runs[0].T is None:
            prefixes = sorted(self.runs, key=lambda run: len(run.prefix))
            return prefixes[(len(prefixes) - 1) // 2]
        middle = median_low(run.T for run in self.runs if run.T is not None)
        return next(run for run in self.runs if run.T == middle)

    @property
    def unbounded(self) -> bool:
        """Mark †: under some seed no strength was within the rule's bounds."""
        return not all(run.allowed for run in self.runs)

    @property
    def unreached(self) -> bool:
        """Mark ‡: some displacement cannot be reached."""
        unchecked = self.conditions is None or self.conditions.reached
        return not (unchecked and all(run.reached for run in self.runs))

    @property
    def title(self) -> str:
        """The name with its marks."""
        return self.name + (" †" if self.unbounded else "") + (" ‡" if self.unreached else "")


def spread(mean: float, sd: float | None, *, scale: float | int = 1, digits: int = 1, sign: str = "") -> str:
    """mean ± sd, or the mean alone if sd is None; a number that rounds to 0 has no minus sign."""
    text = f"{scale * mean:{sign}z.{digits}f}"
    return text if sd is None else f"{text} ± {scale * sd:.{digits}f}"
