"""The smallest strength at which a cost reaches a budget, found from a few measurements, several at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

FIRST = tuple(2.0**k for k in range(-3, 3))
"""The strengths of the first round, as multiples of the guess."""

CLOSE = 0.02
"""How far from the budget the cost of the answer may be, relative to it, for the search to end."""


NEAR = 0.05
"""How far from the budget a cost that spends it may be, relative to it."""


def spends(cost: float, budget: float) -> bool:
    """Whether the cost is the budget, to within `NEAR` of it."""
    return abs(cost / budget - 1) <= NEAR


@dataclass(frozen=True)
class Crossing:
    """`strength` spends `cost`; `reached`: within 5 % of the budget. `monotone`: no measured cost falls as the strength
    grows. `costs`: all that was measured, by strength, ascending; `rounds` of measurements."""

    strength: float
    cost: float
    reached: bool
    monotone: bool
    costs: dict[float, float]
    rounds: int


def first_crossing(
    measure: Callable[[Sequence[float]], Sequence[float]],
    budget: float,
    guess: float,
    most: float = math.inf,
    rounds: int = 6,
) -> Crossing:
    """The smallest strength in (0, most] whose cost is the budget, by secants in log–log between measured strengths.

    `measure` gives the costs of several strengths at once. A cost that grows as a power of the strength is met exactly.
    Where no measured cost reaches the budget, the strength with the largest cost; where all exceed it, the smallest
    strength; `reached` says so. Raises ValueError where a cost is not finite.
    """
    costs: dict[float, float] = {}
    wanted = [min(guess * factor, most) for factor in FIRST]
    for made in range(1, rounds + 1):
        wanted = sorted(set(wanted) - set(costs))
        for strength, cost in zip(wanted, measure(wanted), strict=True):
            if not math.isfinite(cost):
                raise ValueError(f"The cost at strength {strength:g} is not finite: {cost}.")
            costs[strength] = cost
        costs = dict(sorted(costs.items()))
        low, high = _bracket(costs, budget, guess / 1000)
        best = min((s for s in (low, high) if s is not None), key=lambda s: abs(costs[s] - budget))
        if abs(costs[best] / budget - 1) <= CLOSE or made == rounds:
            break
        wanted = _next(costs, budget, low, high, most)
        if not set(wanted) - set(costs):
            break
    known = list(costs.values())
    monotone = all(after >= before * (1 - CLOSE) for before, after in pairwise(known))
    return Crossing(best, costs[best], spends(costs[best], budget), monotone, costs, made)


def near_crossing(
    measure: Callable[[float], float], budget: float, guess: float, most: float = math.inf, tries: int = 5
) -> float | None:
    """A strength whose cost is within 5 % of the budget, from a guess that is near it, one measurement at a time; None
    after so many `tries`. A cost grows as the square of a small strength, which says where to go without a bracket."""
    costs: dict[float, float] = {}
    strength = min(guess, most)
    for _ in range(tries):
        cost = measure(strength)
        if not math.isfinite(cost) or cost <= 0 or strength in costs:
            return None
        costs[strength] = cost
        if spends(cost, budget):
            return strength
        low = max((s for s in costs if costs[s] < budget), default=None)
        high = min((s for s in costs if costs[s] >= budget), default=None)
        if low is None or high is None or low >= high:
            strength = min(strength * min(max((budget / cost) ** 0.5, 0.25), 4.0), most)
        else:
            strength = _secant(low, costs[low], high, costs[high], budget)
    return None


def _bracket(costs: dict[float, float], budget: float, floor: float) -> tuple[float | None, float | None]:
    """The neighbours between which the cost first comes from below the budget to it; (None, s), s the smallest
    strength, where that exceeds it and is not below `floor`, and (s, None), s with the largest cost, where none
    reaches it."""
    strengths = list(costs)
    if costs[strengths[0]] >= budget and strengths[0] > floor:
        return None, strengths[0]
    for low, high in pairwise(strengths):
        if costs[low] < budget <= costs[high]:
            return low, high
    if costs[strengths[0]] >= budget:
        return None, strengths[0]
    return max(costs, key=lambda s: costs[s]), None


def _next(costs: dict[float, float], budget: float, low: float | None, high: float | None, most: float) -> list[float]:
    """What to measure next: three points around the secant's, or six beyond an end, each twice the one before."""
    if low is None:
        assert high is not None
        return [high * 2.0**-k for k in range(1, 7)]
    if high is None:
        top = max(costs)
        return [min(top * 2.0**k, most) for k in range(1, 7)]
    at = _secant(low, max(costs[low], 1e-12 * budget), high, costs[high], budget)
    width = min(1.1, (high / low) ** 0.25)
    return [each for each in (at / width, at, at * width) if low < each < high]


def _secant(low: float, cost_low: float, high: float, cost_high: float, budget: float) -> float:
    """Where the straight line through both points, in logarithms, meets the budget."""
    slope = math.log(cost_high / cost_low) / math.log(high / low)
    at = low * math.exp(math.log(budget / cost_low) / slope)
    return min(max(at, low * (high / low) ** 0.02), low * (high / low) ** 0.98)
