"""How far a method moves activations, ‖a(T) − a‖/‖a‖, and the T that moves them a given way."""

import math

from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Samples
from odesteer_tl.methods import PointwiseMethod

PRECISION = 1e-3
"""The relative precision of the T that is found."""


def displacements(a: Samples, end: Samples) -> Float[Tensor, " n"]:
    """‖end − a‖/‖a‖ of each activation."""
    return (end - a).norm(dim=1) / a.norm(dim=1)


def median_displacement(method: PointwiseMethod, a: Samples, T: float) -> float:
    """Median of ‖a(T) − a‖/‖a‖ over the activations."""
    return float(displacements(a, method.steer(a, T=T)).median())


def reach(method: PointwiseMethod, a: Samples, displacement: float) -> tuple[float, float]:
    """The smallest T whose median displacement is `displacement`, by bisection, and that displacement.

    A flow can end at a maximum of h, and T may have a bound. Where no T moves so far, the T that moves farthest, and
    how far that is.
    """
    view = getattr(method, "view", None)
    largest = math.inf if view is None or view.T.bounds is None else view.T.bounds[1]
    start = min(displacement * float(a.norm(dim=1).median()), largest)  # the T of a method with unit speed
    low, high, tried = 0.0, start, dict[float, float]()
    for _ in range(40):
        tried[high] = median_displacement(method, a, high)
        if tried[high] >= displacement or high == largest:
            break
        low, high = high, min(2 * high, largest)
    if max(tried.values()) < displacement:
        for smaller in range(1, 21):
            T = start * 2.0**-smaller
            tried[T] = median_displacement(method, a, T)
        return max(sorted(tried.items()), key=lambda pair: pair[1])  # the first maximum: the smallest T
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if median_displacement(method, a, middle) >= displacement else (middle, high)
    return high, displacement
