"""Slopes: fields in plain numbers, and how the parts of a method arrive where they are to work; travels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.numerics import along_sphere, norm, on_sphere, unit_length


class Slope:
    """A field in plain numbers: v(a) = function(a, *numbers), a slope of `numerics` and what it needs.

    `normalize`: the function is of a/‖a‖, and the chain rule through that is applied. `unit_speed`: v = ∇h/‖∇h‖.
    `farthest`: at unit speed the function is asked no farther out; its direction stays, its length would overflow.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        numbers: tuple[Any, ...],
        normalize: bool = False,
        unit_speed: bool = False,
        farthest: float | None = None,
    ) -> None:
        self.function, self.numbers, self.normalize, self.unit_speed = function, numbers, normalize, unit_speed
        self.farthest = farthest

    def __call__(self, a: Tensor) -> Tensor:
        if self.normalize:
            return (along_sphere if self.unit_speed else on_sphere)(a, self.function, self.numbers)
        if not self.unit_speed:
            return self.function(a, *self.numbers)
        if self.farthest is not None:
            a = a * (self.farthest / norm(a)).clamp_max(1.0)
        return unit_length(self.function(a, *self.numbers))

    def over(self, numbers: tuple[Any, ...]) -> Slope:
        """The same function of other numbers."""
        return Slope(self.function, numbers, self.normalize, self.unit_speed, self.farthest)

    def at_unit_speed(self) -> Slope:
        """The same direction, at the length 1."""
        return Slope(self.function, self.numbers, self.normalize, True, self.farthest)


def holds_module(thing: Any) -> bool:
    """Whether a module is among the parts of a method, or in an object of the user's among them."""
    if isinstance(thing, Slope):
        return holds_module(thing.numbers)
    if type(thing) is tuple:
        return any(holds_module(part) for part in thing)
    parts = [thing, *getattr(thing, "__dict__", {}).values()]
    return any(isinstance(part, torch.nn.Module) for part in parts)


def arrived(thing: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The parts of a method where they are to work: tensors on `device`, floating ones in `dtype`.

    Restores what `moving.packed` packed: int8 to `dtype`, int32 to int64. Of the user's own objects a module moves as a
    whole, and any other is copied with its tensors and modules on `device`, each in its own dtype.
    """
    if isinstance(thing, Tensor):
        packed = {torch.int8: dtype, torch.int32: torch.int64}
        return thing.to(device=device, dtype=dtype if thing.is_floating_point() else packed.get(thing.dtype))
    if type(thing) is tuple:  # a named one is a user's
        return tuple(arrived(part, device, dtype) for part in thing)
    if isinstance(thing, Slope):
        return thing.over(arrived(thing.numbers, device, dtype))
    if isinstance(thing, torch.nn.Module):
        return thing.to(device=device, dtype=dtype)
    attributes = getattr(thing, "__dict__", {})
    held = {k: v.to(device) for k, v in attributes.items() if isinstance(v, (Tensor, torch.nn.Module))}
    if isinstance(thing, type) or not held:
        return thing
    copy = object.__new__(type(thing))
    copy.__dict__.update({**thing.__dict__, **held})
    return copy
