"""One rule for the strength of every method, so that a table compares methods and not how well each was tuned.

Strength is measured by the displacement ‖a(T) − a‖/‖a‖, its median over the validation prompts. Some strengths are
tried, and between them perplexity and Dist-2 are interpolated (`curve`). Every method gets the strength that spends the
same budget: `MOST_PERPLEXITY` times the perplexity, or `LEAST_DISTINCT` times the Dist-2, of the unsteered model. Which
strengths are tried depends on the caller: the demo tries the displacements of `GRID`, a comparison those of
`runs.DISPLACEMENTS`, or the T that the unit of a method names (`strengths_tried`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Samples
from odesteer_tl.methods import Method, PointwiseMethod

GRID = (0.05, 0.1, 0.2, 0.4, 0.8)
"""The median displacements that the demo tries."""
MOST_PERPLEXITY = 1.3
LEAST_DISTINCT = 0.95


@dataclass(frozen=True)
class Trial:
    """The results of one strength on the validation prompts."""

    displacement: float
    T: float
    share: float
    perplexity: float
    distinct2: float

    def allowed(self, unsteered: "Trial") -> bool:
        """Whether fluency and variety stay within the bounds above."""
        fluent = self.perplexity <= MOST_PERPLEXITY * unsteered.perplexity
        return fluent and self.distinct2 >= LEAST_DISTINCT * unsteered.distinct2


def best(trials: Sequence[Trial], unsteered: Trial) -> Trial:
    """The allowed trial with the largest share, or the weakest trial if none is allowed. It is for prefixes, which
    cannot be interpolated."""
    allowed = [trial for trial in trials if trial.allowed(unsteered)]
    if not allowed:
        return min(trials, key=lambda trial: trial.displacement)
    return max(allowed, key=lambda trial: trial.share)


def median_displacement(method: PointwiseMethod, a: Samples, T: float) -> float:
    """Median of ‖a(T) − a‖/‖a‖ over the activations."""
    return float(displacements(a, method.steer(a, T=T)).median())


def strengths_tried(method: Method) -> tuple[float, ...] | None:
    """The T to try by the unit of the method, the weakest first; None where displacements are tried."""
    view = getattr(method, "view", None)
    return None if view is None else view.T.tried


def displacements(a: Samples, end: Samples) -> Float[Tensor, " n"]:
    """‖end − a‖/‖a‖ of each activation."""
    return (end - a).norm(dim=1) / a.norm(dim=1)


def time_for(method: PointwiseMethod, a: Samples, displacement: float, *, precision: float = 1e-3) -> float:
    """The smallest T, by bisection, at which the median displacement of the activations is `displacement`.

    Raises ValueError where no T reaches it: a flow can end at a maximum of h, and T may have a bound.
    """
    start, largest_T = _guess(method, a, displacement)
    return least_T(lambda T: median_displacement(method, a, T), displacement, start, precision, largest_T=largest_T)


def _guess(method: PointwiseMethod, a: Samples, displacement: float) -> tuple[float, float]:
    """The T of a method with unit speed, as a first guess, and the largest T that the method allows."""
    view = getattr(method, "view", None)
    largest_T = math.inf if view is None or view.T.bounds is None else view.T.bounds[1]
    return min(displacement * float(a.norm(dim=1).median()), largest_T), largest_T


def least_T(
    moved: Callable[[float], float],
    displacement: float,
    start: float,
    precision: float,
    low: float = 0.0,
    largest_T: float = math.inf,
) -> float:
    """The smallest T from `low` to `largest_T` with moved(T) ≥ displacement, by bisection to a relative `precision`;
    `start` is the first guess.

    Raises ValueError where there is none.
    """
    if moved(low) >= displacement:
        return low
    high = start
    for _ in range(40):
        if moved(high) >= displacement:
            break
        if high == largest_T:
            raise ValueError(f"No T up to {high:g} moves the activations by {displacement:g} of their norm.")
        low, high = high, min(2 * high, largest_T)
    else:
        raise ValueError(f"No T up to {high:g} moves the activations by {displacement:g} of their norm.")
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if moved(middle) >= displacement else (middle, high)
    return high


def reach(method: PointwiseMethod, a: Samples, displacement: float) -> tuple[float, float]:
    """(T, median displacement) of `time_for`, or of the largest displacement if the method does not reach that."""
    start, largest_T = _guess(method, a, displacement)
    return nearest(lambda T: median_displacement(method, a, T), displacement, start, 1e-3, largest_T=largest_T)


def nearest(
    moved: Callable[[float], float],
    displacement: float,
    start: float,
    precision: float,
    low: float = 0.0,
    largest_T: float = math.inf,
) -> tuple[float, float]:
    """(T, displacement) of `least_T`; or (T, moved(T)) at the largest displacement, or at `low` if that is larger."""
    try:
        T = least_T(moved, displacement, start, precision, low, largest_T)
    except ValueError:
        tried = [(T, moved(T)) for T in (min(start * 2.0**k, largest_T) for k in range(-20, 21))]
        return max(tried, key=lambda pair: pair[1])  # the first maximum: the smallest T
    return (T, displacement) if T > low else (low, moved(low))
