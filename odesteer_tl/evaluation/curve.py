"""What steering gains and costs against how far it moves activations, interpolated between the strengths tried.

Displacement counts ‖a(T) − a‖/‖a‖. Between two trials the share, T, log perplexity and Dist-2 are lines; perplexity is
taken as what it has risen to so far, Dist-2 as what it has fallen to. The unsteered model is the trial at 0. A rule
that picks one of a few trials flips where one of them stands at a bound; what is read off a curve moves by no more than
its trials do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from odesteer_tl.evaluation.strength import LEAST_DISTINCT, MOST_PERPLEXITY, Trial


@dataclass(frozen=True)
class Point:
    """A place on the curve. `perplexity` and `distinct2` are those of the unsteered model times this."""

    displacement: float
    T: float
    share: float
    perplexity: float
    distinct2: float


@dataclass(frozen=True)
class Curve:
    """The trials of a row, in any order. `rests`: T = 0 moves nothing, so that the curve begins at the unsteered model;
    a closed loop does not rest, and its curve begins at its first trial."""

    trials: Sequence[Trial]
    unsteered: Trial
    rests: bool = True

    @property
    def points(self) -> list[Point]:
        """The trials by displacement, each of which is kept once, with what perplexity and Dist-2 have come to."""
        base, found, tried = self.unsteered, list[Point](), [*self.trials]
        if self.rests:
            tried.append(Trial(0.0, 0.0, base.share, base.perplexity, base.distinct2))
        for trial in sorted(tried, key=lambda each: each.displacement):
            if found and trial.displacement <= found[-1].displacement:
                continue
            cost = trial.perplexity / base.perplexity
            variety = trial.distinct2 / base.distinct2 if base.distinct2 else 1.0
            if found:
                cost, variety = max(cost, found[-1].perplexity), min(variety, found[-1].distinct2)
            found.append(Point(trial.displacement, trial.T, trial.share, cost, variety))
        return found

    def at(self, displacement: float) -> Point:
        """The point at a displacement; at the nearest end of the curve where it does not reach so far."""
        points = self.points
        x = [point.displacement for point in points]
        place = float(np.clip(displacement, x[0], x[-1]))

        def read(values: list[float]) -> float:
            return float(np.interp(place, x, values))

        return Point(
            place,
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
        unsteered model. The first point of a curve that is nowhere within them, its last where it always is."""
        varied = self._before([-point.distinct2 for point in self.points], -LEAST_DISTINCT)
        return min(self.at_perplexity(MOST_PERPLEXITY), varied, key=lambda point: point.displacement)

    @property
    def allowed(self) -> bool:
        """Whether any part of the curve is within the bounds."""
        return self.points[0].perplexity <= MOST_PERPLEXITY and self.points[0].distinct2 >= LEAST_DISTINCT

    def _before(self, rising: list[float], bound: float) -> Point:
        """The point where values that only rise along the curve reach a bound."""
        points = self.points
        for number, value in enumerate(rising):
            if value > bound:
                if number == 0:
                    return self.at(points[0].displacement)
                low, high = points[number - 1].displacement, points[number].displacement
                part = (bound - rising[number - 1]) / (value - rising[number - 1])
                return self.at(low + part * (high - low))
        return self.at(points[-1].displacement)
