"""What every method is to its users: `steer`, `vector_field`, `trajectory`, `edits`, `to`.

Methods are complete, frozen dataclasses: their fields are all that `ot.save` keeps.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from odesteer_tl.activations import Origin
from odesteer_tl.barriers import Barrier
from odesteer_tl.edits import Edit, Site, State
from odesteer_tl.features import norm
from odesteer_tl.flow import Flow, Trajectory
from odesteer_tl.moving import moved
from odesteer_tl.shapes import Activations, Chosen, Time, per_activation

Some = TypeVar("Some", bound="Method")
"""The method's own class. (Not typing.Self, which beartype checks in classes only, not in functions.)"""


class Method(ABC):
    """A fitted way to move activations. Strength T belongs to `steer`, not to the object: one fit serves a sweep."""

    origin: Origin
    barrier: Barrier | None
    """h of the barrier view: `value(a)`, `grad(a)`; None where the method has none."""

    speed: ClassVar[float | None] = 1.0
    """‖v‖, so that T·speed is about the displacement; None where it varies. CAA overrides it with ‖μ₊ − μ₋‖."""

    @property
    def layer(self) -> int | None:
        """The 0-based block whose `resid_post` the method was fitted at."""
        return self.origin.layer

    def to(self: Some, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Some:
        """The same method with its numbers on `device` and in `dtype` (float32 or float64)."""
        return moved(self, device, dtype)

    def steer(self, a: Activations, T: Time | None = None, *, relative_T: Time | None = None) -> Activations:
        """a(0) → a(T), shape, dtype and device of `a`; computed in float32, or float64 for float64 activations.

        `T` is a number or a tensor with one value per row; `relative_T` means T = relative_T·‖a‖ for each activation.
        The number T = 0 returns `a` itself. Casting back to bfloat16 loses about 2 % of the displacement at T/‖a‖ = 0.1
        and 17 % at 0.01. Raises ValueError for both or neither of T and relative_T, a T that is not finite or does not
        fit, or another d_model than the one fitted.
        """
        _check_strength(T, relative_T)
        return self._steered(a, T, relative_T)

    def vector_field(self, a: Activations) -> Activations:
        """The velocity v(a) at T = 0."""
        self._check_width(a)
        here, x = self._at(a)
        return here._velocity(x).to(a.dtype)

    def edits(self, T: Time | None = None, *, relative_T: Time | None = None, layer: int | None = None) -> list[Edit]:
        """What a backend carries out: at `resid_post` of the fitted layer, or of `layer`, replace a by steer(a, T).

        A tensor T holds one value per batch row. Raises ValueError where no layer is known, and as `steer` does.
        """
        layer = self.layer if layer is None else layer
        if layer is None:
            raise ValueError("This method was fitted without a layer: pass layer=, for example layer=6.")
        _check_strength(T, relative_T)

        def of_rows(strength: Time | None, state: State) -> Time | None:
            if not isinstance(strength, Tensor) or strength.ndim == 0:
                return strength
            return strength.to(state.rows.device)[state.rows]

        def apply(read: Chosen, write: Chosen, state: State) -> Chosen:
            return self._steered(write, of_rows(T, state), of_rows(relative_T, state))

        site = Site(layer)
        return [Edit(read=site, write=site, apply=apply)]

    def _steered(self, a: Activations, T: Time | None, relative_T: Time | None) -> Activations:
        self._check_width(a)
        strength = relative_T if T is None else T
        if not isinstance(strength, Tensor) and strength == 0:
            return a
        here, x = self._at(a)
        return here._move(x, _absolute(T, relative_T, x)).to(a.dtype)

    @abstractmethod
    def _move(self, x: Activations, T: Time) -> Activations: ...

    @abstractmethod
    def _velocity(self, x: Activations) -> Activations: ...

    def _check_width(self, a: Activations) -> None:
        if self.origin.d_model is not None and a.shape[-1] != self.origin.d_model:
            raise ValueError(f"This method was fitted at d_model {self.origin.d_model}, got {tuple(a.shape)}.")

    def _at(self: Some, a: Activations) -> tuple[Some, Activations]:
        """The method and the activations in the dtype and on the device where they meet; copies are made once."""
        dtype = torch.promote_types(a.dtype, torch.float32)
        key = (a.device, dtype)
        if key not in self._copies:
            with torch.inference_mode(False):  # kept beyond this call, which may run in inference mode
                self._copies[key] = self.to(*key)
        return self._copies[key], a.to(dtype)

    @cached_property
    def _copies(self) -> "dict[tuple[torch.device, torch.dtype], Any]":
        return {}


class FlowMethod(Method):
    """A method that is one flow: everything follows from `flow` and `barrier`."""

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """Field, solver and number of steps."""

    def trajectory(self, a: Activations, T: Time | None = None, *, relative_T: Time | None = None) -> Trajectory:
        """a(t) and h at every step, in the dtype of the computation; `chatters` flags activations where h falls."""
        _check_strength(T, relative_T)
        self._check_width(a)
        here, x = self._at(a)
        return here.flow.trajectory(x, _absolute(T, relative_T, x), here.barrier)

    def _move(self, x: Activations, T: Time) -> Activations:
        return self.flow(x, T)

    def _velocity(self, x: Activations) -> Activations:
        return self.flow.field(x)


def _check_strength(T: Time | None, relative_T: Time | None) -> None:
    if (T is None) == (relative_T is None):
        raise ValueError(f"Give either T or relative_T, got T={T}, relative_T={relative_T}.")
    strength = relative_T if T is None else T
    if not isinstance(strength, (int, float, Tensor)):
        raise ValueError(f"T is a number or a tensor, one value per row; got a {type(strength).__name__}.")
    if not bool(torch.isfinite(torch.as_tensor(strength)).all()):
        raise ValueError(f"T and relative_T must be finite, got {strength}.")


def _absolute(T: Time | None, relative_T: Time | None, x: Activations) -> Time:
    if relative_T is None:
        assert T is not None  # _check_strength
        return T
    return (per_activation(relative_T, x) * norm(x)).squeeze(-1)
