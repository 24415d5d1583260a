"""Where the strength of a method is sought: T, relative_T, or one factor for a list of methods."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from odesteer_tl.evaluation.calibration import Sought
from odesteer_tl.methods.calibrated import without_strength
from odesteer_tl.methods.view import LENGTH
from odesteer_tl.portable.method_list import check_method, pairs_of
from odesteer_tl.portable.strength import Strength

GUESS = 0.1
"""Where the search begins for methods whose T is a length: a tenth of each activation's norm."""


@dataclass(frozen=True, eq=False)
class Search:
    """What is sought, where the search begins, the largest value there is, and `pairs(value)`: the methods with their
    strengths at a value, which may be a tensor of one value per row."""

    name: str
    sought: Sought
    guess: float
    most: float
    pairs: Callable[[Any], list[tuple[Any, Strength]]]


def strength_of(sought: Sought, value: Any) -> Strength:
    """The strength at a value of what is sought; a factor stands as T."""
    return Strength(relative_T=value) if sought == "relative_T" else Strength(value)


def check_budget(kl: Any, least: str = "0 or more") -> None:
    """Raise ValueError for what is no budget of KL, in nats."""
    number = math.nan if isinstance(kl, (str, bytes, bool)) or not hasattr(kl, "__float__") else float(kl)
    if not 0 <= number < math.inf or (number == 0 and least != "0 or more"):
        raise ValueError(f"kl is a budget in nats, {least}, such as 0.1; got {kl!r}.")


def search_of(method: Any, relative: bool | None) -> Search:
    """For T or relative_T of one method."""
    check_method(method)
    method = without_strength(method)
    view = getattr(method, "view", None)
    unit = LENGTH if view is None else view.T
    relative = (unit is LENGTH and not method.several) if relative is None else relative
    sought: Sought = "relative_T" if relative else "T"
    if relative:
        strength_of(sought, 0.0).check(limits=unit.limits)
    most = math.inf if unit.bounds is None or relative else unit.bounds[1]

    def pairs(value: Any) -> list[tuple[Any, Strength]]:
        return [(method, strength_of(sought, value))]

    guess = GUESS if relative else method.usual_T / 2
    return Search(type(method).__name__, sought, guess, most, pairs)


def search_for_factor(methods: Sequence[Any], layer: int | None) -> Search:
    """For the factor of all strengths of a list."""
    given, most = pairs_of(methods, None, None, layer), math.inf
    for method, strength in given:
        if isinstance(strength.value, Tensor):
            raise ValueError("calibrate multiplies the strengths of a list by one factor: give one number for each.")
        bounds = method.view.T.bounds if hasattr(method, "view") else None
        if bounds is not None and strength.value > 0:
            most = min(most, bounds[1] / strength.value)
    if all(strength.is_zero for _, strength in given):
        raise ValueError("All strengths of the list are 0: no factor makes them spend anything. Give others.")

    def pairs(value: Any) -> list[tuple[Any, Strength]]:
        return [(method, strength.mapped(lambda own: own * value)) for method, strength in given]

    return Search("The list", "factor", min(0.5, most), most, pairs)
