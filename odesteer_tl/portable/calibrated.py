"""A method with a strength of its own as plain numbers: what `Calibrated` sends to a server."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.strength import Strength


class PortableCalibrated:
    """A portable method and the strength at which it steers where none is given: as `Calibrated`, same errors."""

    def __init__(self, method: Any, strength: Strength) -> None:
        self.method, self.strength = method, strength

    def as_pair(self) -> tuple[Any, Strength]:
        """The method, and the strength that it carries."""
        return self.method, self.strength

    def steer(
        self,
        a: Tensor,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
    ) -> Tensor:
        """As the method's own, at the strength that it carries unless one is given."""
        return self.method.steer(a, given_or(self.strength, T, relative_T))

    def edits(
        self,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[Edit]:
        """As the method's own, at the strength that it carries unless one is given."""
        return self.method.edits(given_or(self.strength, T, relative_T), layer=layer)

    def init_args(self) -> tuple[Any, ...]:
        """The arguments that make it again."""
        return self.method, self.strength


def given_or(carried: Strength, T: Any, relative_T: Any) -> Strength:
    """The strength that a user gives, or the one that is carried where neither is given."""
    return carried if T is None and relative_T is None else Strength.of(T, relative_T)
