"""Strength: how far a method steers, given as T or relative_T. It is checked and resolved here for all backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.frozen import Frozen
from odesteer_tl.portable.integrate import norm, per_activation
from odesteer_tl.portable.precision import compute_dtype

LARGEST = torch.finfo(torch.float64).max


class Strength(Frozen):
    """How far to steer: either `T`, or `relative_T`, which means T = relative_T·‖a‖ for each activation.

        ot.steering(model, method, ot.Strength(relative_T=0.2))
        ot.generate(model, prompts, [(a, 5.0), (b, ot.Strength(relative_T=0.2))])

    The value is a number, or a tensor of one value per batch row; the method defines the unit of T. Two strengths are
    equal only if they are the same object, because a comparison of tensors gives no single bool. Raises ValueError for
    both or neither, and for a value that is not a finite number.
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
        # math.isfinite fails for an int above the largest float64
        finite = torch.isfinite(value).all() if isinstance(value, Tensor) else abs(value) <= LARGEST
        if not finite:
            raise ValueError(f"T and relative_T must be finite, got {value}.")
        self.__dict__.update(T=T, relative_T=relative_T)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @staticmethod
    def of(T: Any, relative_T: Any = None) -> Strength:
        """The strength of T or relative_T as a user gives them; T may be a `Strength`. Raises as the class does."""
        given: Any = T
        return given if isinstance(given, Strength) and relative_T is None else Strength(T, relative_T)

    @property
    def value(self) -> Any:
        """The number or the tensor that was given."""
        return self.relative_T if self.T is None else self.T

    @property
    def is_zero(self) -> bool:
        """Whether it is the number 0, for which activations are returned unchanged."""
        return not isinstance(self.value, Tensor) and self.value == 0

    @property
    def rows(self) -> int | None:
        """The number of batch rows that it holds a value for; None if one value is for all rows."""
        return len(self.value) if isinstance(self.value, Tensor) and self.value.ndim else None

    @property
    def goes_far(self) -> bool:
        """Whether T may exceed 65504, the largest float16. True where a tensor or ‖a‖ decides T: nothing is checked
        then, so that nothing waits for the device."""
        return self.T is None or isinstance(self.T, Tensor) or abs(self.T) > 65504

    @property
    def size(self) -> float:
        """The largest |T| or |relative_T|, as a Python float."""
        value = self.value
        if isinstance(value, Tensor):
            return float(value.detach().abs().max()) if value.numel() else 0.0
        return abs(float(value))

    def at(self, x: Tensor) -> Any:
        """T at the activations x [*batch, d_model]: T itself, or relative_T·‖x‖ per activation."""
        return self.T if self.relative_T is None else (per_activation(self.relative_T, x) * norm(x)).squeeze(-1)

    def of_rows(self, state: Any) -> Strength:
        """The strength per chosen token. If there is one value per batch row, it takes the row of each token from
        `state.rows`; otherwise it does not compute `state.rows`."""
        if self.rows is None:
            return self
        return self.mapped(lambda value: value.to(state.rows.device, non_blocking=True)[state.rows])

    def mapped(self, change: Callable[[Any], Any]) -> Strength:
        """A strength of `change(value)`, not checked again: `change` only selects or moves values."""
        copy, value = object.__new__(type(self)), change(self.value)
        copy.__dict__.update(T=None if self.T is None else value, relative_T=value if self.T is None else None)
        return copy

    def check(self, dtype: torch.dtype | None = None, limits: Any = None) -> Strength:
        """Returns itself. Raises ValueError if it does not fit `dtype`, or the `limits` (message, low, high) of a
        method, where those are given."""
        if dtype is not None:
            check_fits(self.size, dtype)
        if limits is not None:
            requirement, low, high = limits
            if self.T is None or not torch.as_tensor((low <= self.T) & (self.T <= high), device="cpu").all():
                raise ValueError(f"{requirement}; got T={self.T}, relative_T={self.relative_T}.")
        return self


def check_fits(size: float, dtype: torch.dtype) -> None:
    """Raise ValueError for a T above the largest number of `dtype`, or above the square root of the largest number of
    `compute_dtype(dtype)`, because lengths are squared there."""
    if size <= 65504:  # the largest float16, which fits every float type
        return
    largest = min(torch.finfo(dtype).max, torch.finfo(compute_dtype(dtype)).max ** 0.5)
    if size > largest:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"T = {size:g} does not fit {name} (largest {largest:.5g}): give a smaller one.")
