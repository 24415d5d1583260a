"""One rule for the strength of every method, so that a table compares methods and not the care spent on each.

Strength is counted in median displacement: the T at which a method moves the validation prompts' activations by
‖a(T) − a‖/‖a‖ = .05, .1, .2, .4, .8 in the median. Between these, perplexity and Dist-2 are interpolated (`curve`), and
every method gets the strength that spends the same budget: perplexity 1.3× or Dist-2 .95× of the unsteered model's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Samples
from odesteer_tl.methods import Method, PointwiseMethod

GRID = (0.05, 0.1, 0.2, 0.4, 0.8)
MOST_PERPLEXITY = 1.3
LEAST_DISTINCT = 0.95


@dataclass(frozen=True)
class Trial:
    """What one strength did on the validation prompts."""

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
    """The allowed trial with the largest share, where nothing lies between trials, as between prefixes; the weakest one
    where none is allowed."""
    allowed = [trial for trial in trials if trial.allowed(unsteered)]
    if not allowed:
        return min(trials, key=lambda trial: trial.displacement)
    return max(allowed, key=lambda trial: trial.share)


def median_displacement(method: PointwiseMethod, a: Samples, T: float) -> float:
    """Median of ‖a(T) − a‖/‖a‖ over the activations."""
    return float(displacements(a, method.steer(a, T=T)).median())


def strengths_tried(method: Method) -> tuple[float, ...] | None:
    """The T that a method's unit has tried, the weakest first; None where strengths are counted in displacement."""
    view = getattr(method, "view", None)
    return None if view is None else view.T.tried


def displacements(a: Samples, end: Samples) -> Float[Tensor, " n"]:
    """‖end − a‖/‖a‖ of each activation."""
    return (end - a).norm(dim=1) / a.norm(dim=1)


def time_for(method: PointwiseMethod, a: Samples, displacement: float, *, precision: float = 1e-3) -> float:
    """The smallest T found at which `method` moves the activations by `displacement` in the median, by bisection.

    Raises ValueError where it never does: a bounded barrier can end before a far goal, and T may have a bound.
    """
    start, most = _guess(method, a, displacement)
    return least_T(lambda T: median_displacement(method, a, T), displacement, start, precision, most=most)


def _guess(method: PointwiseMethod, a: Samples, displacement: float) -> tuple[float, float]:
    """The T that a method of unit speed needs, and the largest that this one takes."""
    view = getattr(method, "view", None)
    most = math.inf if view is None or view.T.bounds is None else view.T.bounds[1]
    return min(displacement * float(a.norm(dim=1).median()), most), most


def least_T(
    moved: Callable[[float], float],
    displacement: float,
    start: float,
    precision: float,
    low: float = 0.0,
    most: float = math.inf,
) -> float:
    """The smallest T found from `low` to `most` with moved(T) ≥ displacement, to a relative `precision`; `start` is a
    guess.

    Raises ValueError where there is none.
    """
    if moved(low) >= displacement:
        return low
    high = start
    for _ in range(40):
        if moved(high) >= displacement:
            break
        if high == most:
            raise ValueError(f"No T up to {high:g} moves the activations by {displacement:g} of their norm.")
        low, high = high, min(2 * high, most)
    else:
        raise ValueError(f"No T up to {high:g} moves the activations by {displacement:g} of their norm.")
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if moved(middle) >= displacement else (middle, high)
    return high


def reach(method: PointwiseMethod, a: Samples, displacement: float) -> tuple[float, float]:
    """(T, median displacement) of `time_for`, or, where a method never gets so far, of its farthest reach."""
    start, most = _guess(method, a, displacement)
    return nearest(lambda T: median_displacement(method, a, T), displacement, start, 1e-3, most=most)


def nearest(
    moved: Callable[[float], float],
    displacement: float,
    start: float,
    precision: float,
    low: float = 0.0,
    most: float = math.inf,
) -> tuple[float, float]:
    """T of `least_T` and `displacement`; or T and moved(T) at the farthest reach, or at `low` where that is further."""
    try:
        T = least_T(moved, displacement, start, precision, low, most)
    except ValueError:
        tried = [(T, moved(T)) for T in (min(start * 2.0**k, most) for k in range(-20, 21))]
        return max(tried, key=lambda found: found[1])  # the smallest T of equal ones
    return (T, displacement) if T > low else (low, moved(low))
