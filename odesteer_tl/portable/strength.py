"""Strength: how far a method steers, given as T or as relative_T, checked and resolved here for every way to steer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.frozen import Frozen
from odesteer_tl.portable.integrate import norm, per_activation
from odesteer_tl.portable.precision import working

LARGEST = torch.finfo(torch.float64).max


class Strength(Frozen):
    """How far to steer: `T`, or `relative_T`, which means T = relative_T·‖a‖ for each activation; one of the two.

        ot.steering(model, method, ot.Strength(relative_T=0.2))
        ot.generate(model, prompts, [(a, 5.0), (b, ot.Strength(relative_T=0.2))])

    Each is a number, or a tensor of one value per batch row; in what T counts is for the method to say. Two strengths
    are equal where they are one object, since tensors are not compared to one answer. Raises ValueError for both or
    neither, and for what is no number or not finite.
    """

    T: float | int | Tensor | None
    relative_T: float | int | Tensor | None

    def __init__(self, T: float | int | Tensor | None = None, relative_T: float | int | Tensor | None = None) -> None:
        if (T is None) == (relative_T is None):
            raise ValueError(f"Give either T or relative_T, got T={T}, relative_T={relative_T}.")
        value = relative_T if T is None else T
        if not isinstance(value, (int, float, Tensor)):
            raise ValueError(f"T is a number or a tensor, one value per row; got a {type(value).__name__}.")
        if isinstance(value, Tensor) and (value.is_complex() or value.dtype == torch.bool):
            raise ValueError(f"A tensor T holds real numbers, one value per row; got {value.dtype}.")
        whole = torch.isfinite(value).all() if isinstance(value, Tensor) else abs(value) <= LARGEST  # no huge int
        if not whole:
            raise ValueError(f"T and relative_T must be finite, got {value}.")
        self.__dict__.update(T=T, relative_T=relative_T)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @staticmethod
    def of(T: Any, relative_T: Any = None) -> Strength:
        """The strength that a user gives: T, relative_T, or a Strength in the place of T. Raises as the class does."""
        given: Any = T
        return given if isinstance(given, Strength) and relative_T is None else Strength(T, relative_T)

    @property
    def value(self) -> Any:
        """The number or the tensor that was given."""
        return self.relative_T if self.T is None else self.T

    @property
    def is_zero(self) -> bool:
        """Whether it is the number 0, for which an activation is given back itself."""
        return not isinstance(self.value, Tensor) and self.value == 0

    @property
    def rows(self) -> int | None:
        """For how many batch rows it holds a value; None where one is for all."""
        return len(self.value) if isinstance(self.value, Tensor) and self.value.ndim else None

    @property
    def goes_far(self) -> bool:
        """Whether it may take activations beyond any float type: where a tensor, or ‖a‖, decides it."""
        return self.T is None or isinstance(self.T, Tensor) or abs(self.T) > 65504

    @property
    def size(self) -> float:
        """The largest |T|, or |relative_T|, as a number of the host's."""
        value = self.value
        if isinstance(value, Tensor):
            return float(value.detach().abs().max()) if value.numel() else 0.0
        return abs(float(value))

    def at(self, x: Tensor) -> Any:
        """T at the activations x [*batch, d_model]: itself, or relative_T·‖x‖ for each."""
        return self.T if self.relative_T is None else (per_activation(self.relative_T, x) * norm(x)).squeeze(-1)

    def of_rows(self, state: Any) -> Strength:
        """The strength of each chosen token, where one value per batch row is held and `state.rows`, which is not asked
        for otherwise, says whose each token is."""
        if self.rows is None:
            return self
        return self.mapped(lambda value: value.to(state.rows.device, non_blocking=True)[state.rows])

    def mapped(self, change: Callable[[Any], Any]) -> Strength:
        """The same with `change(value)` in the place of its value, which is not checked again: values picked out."""
        made, value = object.__new__(type(self)), change(self.value)
        made.__dict__.update(T=None if self.T is None else value, relative_T=value if self.T is None else None)
        return made

    def check(self, dtype: torch.dtype | None = None, limits: Any = None) -> Strength:
        """Itself. Raises ValueError where it does not fit `dtype` or the `limits` of a method, where those are
        known."""
        if dtype is not None:
            check_fits(self.size, dtype)
        if limits is not None:
            said, least, most = limits
            if self.T is None or not torch.as_tensor((least <= self.T) & (self.T <= most)).all():
                raise ValueError(f"{said}; got T={self.T}, relative_T={self.relative_T}.")
        return self


def check_fits(size: float, dtype: torch.dtype) -> None:
    """Raise ValueError for a T beyond the largest number of `dtype`, or the root of that of what is computed in, as
    lengths are squared."""
    if size <= 65504:  # which any float type holds
        return
    largest = min(torch.finfo(dtype).max, torch.finfo(working(dtype)).max ** 0.5)
    if size > largest:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"T = {size:g} does not fit {name} (largest {largest:.5g}): give a smaller one.")
