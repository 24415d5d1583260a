"""Turns what a user gives, one method or a list, into pairs of a fitted method and its strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from odesteer_tl.portable.sites import check_no_layer
from odesteer_tl.portable.strength import Strength


def pairs_of(method: Any, T: Any, relative_T: Any, layer: Any = None) -> list[tuple[Any, Strength]]:
    """Methods with their strengths, in the order in which they act; `Layers` is replaced by its parts.

    Raises ValueError for a list that does not hold such pairs, for an object that is not a fitted method, for a wrong
    strength, and for a `layer` with `Layers`.
    """
    if not isinstance(method, Sequence):
        check_method(method)
        return _parts_of(method, Strength.of(T, relative_T), layer)
    if T is not None or relative_T is not None or not method:
        raise ValueError(
            "A list of methods carries its strengths: give [(method_a, 5.0), (method_b, 2.0)], and no T or relative_T."
        )
    if any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in method):
        raise ValueError("A list of methods holds pairs: give [(method_a, 5.0), (method_b, 2.0)].")
    return [pair for member, strength in method for pair in pairs_of(member, strength, None, layer)]


def _parts_of(method: Any, strength: Strength, layer: Any) -> list[tuple[Any, Strength]]:
    if not hasattr(method, "as_methods"):
        return [(method, strength)]
    check_no_layer(layer)
    return [pair for part in method.as_methods() for pair in _parts_of(part, strength, None)]


def check_method(method: Any) -> None:
    """Raise ValueError for a class, a barrier, or any other object that is not a fitted method."""
    if isinstance(method, type):
        name = method.__name__
        raise ValueError(f"{name} is a class, not a fitted method: fit one, {name}.fit(acts), and pass that.")
    if not callable(getattr(method, "edits", None)):
        name = type(method).__name__
        hint = ": ot.GradientFlow(barrier, layer=…) steers by it" if callable(getattr(method, "value", None)) else ""
        raise ValueError(f"A {name} is no fitted method: give one such as ot.ODESteer.fit(acts){hint}.")
