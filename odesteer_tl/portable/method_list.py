"""Turns what a user gives, one method or a list, into pairs of a fitted method and its strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from odesteer_tl.portable.sites import check_no_layer
from odesteer_tl.portable.strength import Strength


def pairs_of(method: Any, T: Any, relative_T: Any, layer: Any = None) -> list[tuple[Any, Strength]]:
    """Methods with their strengths, in the order in which they act; `Layers` is replaced by its parts.

    A calibrated method is replaced by its own method, at the strength that it carries unless one is given; a list may
    hold it without a strength. Raises ValueError for a list that does not hold such pairs, for an object that is not a
    fitted method, for a wrong strength, and for a `layer` with `Layers`.
    """
    pairs: list[tuple[Any, Strength]] = []
    for member, given in members_of(method, T, relative_T, layer):
        if given is None and hasattr(member, "as_pair"):
            own, carried = member.as_pair()
            pairs += _members(own, carried, layer)
        else:
            pairs.append((member, Strength.of(given)))  # raises where there is none
    return pairs


def members_of(method: Any, T: Any, relative_T: Any, layer: Any = None) -> list[tuple[Any, Any]]:
    """The methods of `pairs_of`, each with the strength that was given for it or None; a calibrated one stays what it
    is where it uses the strength that it carries. Raises as `pairs_of` does, but for a missing strength."""
    if not isinstance(method, Sequence):
        check_method(method)
        return _members(method, None if T is None and relative_T is None else Strength.of(T, relative_T), layer)
    if T is not None or relative_T is not None or not method:
        raise ValueError(
            "A list of methods carries its strengths: give [(method_a, 5.0), (method_b, 2.0)], and no T or relative_T."
        )
    pairs = [(member, None) if hasattr(member, "as_pair") else member for member in method]
    if any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
        raise ValueError("A list of methods holds pairs: give [(method_a, 5.0), (method_b, 2.0)].")
    return [member for one, strength in pairs for member in members_of(one, strength, None, layer)]


def _members(method: Any, given: Strength | None, layer: Any) -> list[tuple[Any, Any]]:
    if hasattr(method, "as_pair"):
        return [(method, None)] if given is None else _members(method.as_pair()[0], given, layer)
    if not hasattr(method, "as_methods"):
        return [(method, given)]
    check_no_layer(layer)
    return [member for part in method.as_methods() for member in _members(part, given, None)]


def check_method(method: Any) -> None:
    """Raise ValueError for a class, a barrier, or any other object that is not a fitted method."""
    if isinstance(method, type):
        name = method.__name__
        raise ValueError(f"{name} is a class, not a fitted method: fit one, {name}.fit(acts), and pass that.")
    if not callable(getattr(method, "edits", None)):
        name = type(method).__name__
        hint = ": ot.GradientFlow(barrier, layer=…) steers by it" if callable(getattr(method, "value", None)) else ""
        raise ValueError(f"A {name} is no fitted method: give one such as ot.ODESteer.fit(acts){hint}.")
