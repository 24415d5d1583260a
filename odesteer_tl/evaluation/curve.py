"""Gain and cost of steering as functions of displacement, interpolated between the strengths tried.

Displacement is ‖a(T) − a‖/‖a‖. Between two trials the share, T, log perplexity and Dist-2 are linear. Perplexity is the
running maximum and Dist-2 the running minimum over the trials so far. The unsteered model is the trial at 0. A rule
that picks one of a few trials can jump when a trial crosses a bound; a point on the curve changes no more than the
trials do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from odesteer_tl.evaluation.strength import LEAST_DISTINCT, MOST_PERPLEXITY, Trial


@dataclass(frozen=True)
class Point:
    """A point of the curve. `perplexity` and `distinct2` are ratios to those of the unsteered model."""

    displacement: float
    T: float
    share: float
    perplexity: float
    distinct2: float


@dataclass(frozen=True)
class Curve:
    """The trials of a row, in any order. `rests`: at T = 0 the method moves nothing, so the curve starts at the
    unsteered model. A closed loop acts at T = 0, so its curve starts at its first trial."""

    trials: Sequence[Trial]
    unsteered: Trial
    rests: bool = True

    @property
    def points(self) -> list[Point]:
        """The trials sorted by displacement, one for each, with running maximum of perplexity and minimum of Dist-2."""
        base, points, trials = self.unsteered, list[Point](), [*self.trials]
        if self.rests:
            trials.append(Trial(0.0, 0.0, base.share, base.perplexity, base.distinct2))
        for trial in sorted(trials, key=lambda trial: trial.displacement):
            if points and trial.displacement <= points[-1].displacement:
                continue
            cost = trial.perplexity / base.perplexity
            variety = trial.distinct2 / base.distinct2 if base.distinct2 else 1.0
            if points:
                cost, variety = max(cost, points[-1].perplexity), min(variety, points[-1].distinct2)
            points.append(Point(trial.displacement, trial.T, trial.share, cost, variety))
        return points

    def at(self, displacement: float) -> Point:
        """The point at a displacement, or the nearest end of the curve."""
        points = self.points
        x = [point.displacement for point in points]
        clipped = float(np.clip(displacement, x[0], x[-1]))

        def read(values: list[float]) -> float:
            return float(np.interp(clipped, x, values))

        return Point(
            clipped,
            read([point.T for point in points]),
            read([point.share for point in points]),
            exp(read([log(point.perplexity) for point in points])),
            read([point.distinct2 for point in points]),
        )

    def at_perplexity(self, ratio: float) -> Point:
        """The farthest point whose perplexity is at most `ratio` times that of the unsteered model."""
        return self._before([log(point.perplexity) for point in self.points], log(ratio))

    @property
    def chosen(self) -> Point:
        """The strength that spends the budget: the farthest point with perplexity ≤ 1.3× and Dist-2 ≥ .95× of the
        unsteered model. If no point is within the bounds, the first point; if all are, the last."""
        varied = self._before([-point.distinct2 for point in self.points], -LEAST_DISTINCT)
        return min(self.at_perplexity(MOST_PERPLEXITY), varied, key=lambda point: point.displacement)

    @property
    def allowed(self) -> bool:
        """Whether the start of the curve is within the bounds; if not, no later point is."""
        return self.points[0].perplexity <= MOST_PERPLEXITY and self.points[0].distinct2 >= LEAST_DISTINCT

    def _before(self, rising: list[float], bound: float) -> Point:
        """The point where `rising`, values that never fall along the curve, reaches the bound."""
        points = self.points
        for number, value in enumerate(rising):
            if value > bound:
                if number == 0:
                    return self.at(points[0].displacement)
                low, high = points[number - 1].displacement, points[number].displacement
                part = (bound - rising[number - 1]) / (value - rising[number - 1])
                return self.at(low + part * (high - low))
        return self.at(points[-1].displacement)
