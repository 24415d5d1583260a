"""A row of a comparison: how it was fitted, what it does to activations, and what texts it made under every seed."""

from dataclasses import dataclass
from statistics import fmean, median_low, stdev
from typing import Literal

from odesteer_tl.evaluation.checks import Conditions
from odesteer_tl.evaluation.runs import Run
from odesteer_tl.evaluation.strength import LEAST_DISTINCT, MOST_PERPLEXITY
from odesteer_tl.methods import Method

Figure = Literal["share", "shift", "perplexity_ratio", "distinct1", "distinct2", "distinct3"]
"""What a row measures of its continuations."""

MARKS = {
    "†": f"under some seed no strength was within the bounds (perplexity ≤ {MOST_PERPLEXITY}×, Dist-2 ≥ "
    f"{LEAST_DISTINCT}×): the weakest was taken",
    "‡": "does not reach every displacement asked for: the nearest that it does was tried instead",
}


@dataclass(frozen=True, eq=False)
class ComparedRow:
    """One row: `fitted_on` texts, pairs, queries or elsewhere; the method of the first seed; a run
    per seed where texts were made.

    `method` and `conditions` are None where nothing steers; of methods that take turns they are the first's. `seconds`:
    what the fit took, None of a method that was given fitted.
    """

    name: str
    fitted_on: str
    method: Method | None
    seconds: float | None
    conditions: Conditions | None
    runs: tuple[Run, ...] = ()

    def over_seeds(self, figure: Figure) -> tuple[float, float | None]:
        """Mean and sample standard deviation over the seeds; there is no deviation of one seed."""
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
        """†: under some seed no strength was within the rule's bounds."""
        return not all(run.allowed for run in self.runs)

    @property
    def unreached(self) -> bool:
        """‡: some displacement cannot be had."""
        unchecked = self.conditions is None or self.conditions.reached
        return not (unchecked and all(run.reached for run in self.runs))

    @property
    def title(self) -> str:
        """The name, with the marks that hold."""
        return self.name + (" †" if self.unbounded else "") + (" ‡" if self.unreached else "")


def spread(mean: float, sd: float | None, *, scale: float | int = 1, digits: int = 1, sign: str = "") -> str:
    """mean ± sd, or the mean alone of one seed; what rounds to 0 has no minus."""
    text = f"{scale * mean:{sign}z.{digits}f}"
    return text if sd is None else f"{text} ± {scale * sd:.{digits}f}"
