"""Serializable gradient functions, and moving their tensors to a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.integrate import along_sphere, norm, on_sphere, unit_length


class GradientFunction:
    """A field in plain numbers: v(a) = function(a, *numbers), a slope of `integrate` and what it needs.

    `normalize`: the function is of a/‖a‖, and the chain rule through that is applied. `unit_speed`: v = ∇h/‖∇h‖.
    `farthest`: at unit speed the function is asked no farther out; its direction stays, its length would overflow.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        params: tuple[Any, ...],
        normalize: bool = False,
        unit_speed: bool = False,
        farthest: float | None = None,
    ) -> None:
        self.function, self.params, self.normalize, self.unit_speed = function, params, normalize, unit_speed
        self.farthest = farthest

    def __call__(self, a: Tensor) -> Tensor:
        if self.normalize:
            return (along_sphere if self.unit_speed else on_sphere)(a, self.function, self.params)
        if not self.unit_speed:
            return self.function(a, *self.params)
        if self.farthest is not None:
            a = a * (self.farthest / norm(a)).clamp_max(1.0)
        return unit_length(self.function(a, *self.params))

    def over(self, params: tuple[Any, ...]) -> GradientFunction:
        """The same function of other numbers."""
        return GradientFunction(self.function, params, self.normalize, self.unit_speed, self.farthest)

    def at_unit_speed(self) -> GradientFunction:
        """The same direction, at the length 1."""
        return GradientFunction(self.function, self.params, self.normalize, True, self.farthest)


class Copies:
    """Copies of one thing, by where they are: each is made once. A copy of this, or one that is sent, is empty."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}

    def at(self, place: Any, make: Callable[[], Any]) -> Any:
        """The copy at a place, which `make` makes where there is none."""
        if place not in self.made:
            with torch.inference_mode(False):  # kept beyond this call, which may run in inference mode
                self.made[place] = make()
        return self.made[place]

    def __getstate__(self) -> dict[str, Any]:
        return {"made": {}}


def changed(thing: Any, change: Callable[[Any], Any]) -> Any:
    """Tuples and gradient functions, nested, with change(leaf) for each tensor, number, function or object."""
    if isinstance(thing, GradientFunction):
        return thing.over(changed(thing.params, change))
    if type(thing) is tuple:  # a named one is a user's
        return tuple(changed(part, change) for part in thing)
    return change(thing)


def leaves(thing: Any) -> list[Any]:
    """What `changed` would change."""
    found: list[Any] = []
    changed(thing, found.append)
    return found


def holds_module(parts: Any) -> bool:
    """Whether a module is among the parts of a method, or in an object of the user's among them."""
    objects = [each for leaf in leaves(parts) for each in (leaf, *getattr(leaf, "__dict__", {}).values())]
    return any(isinstance(each, torch.nn.Module) for each in objects)


def to_device(parts: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The parts of a method where they are to work: tensors on `device`, floating ones in `dtype`.

    Restores what `packing.packed` packed: int8 to `dtype`, int32 to int64. A module of the user's own moves as a
    whole, and any other is copied with its tensors and modules on `device`, each in its own dtype.
    """

    def arrive(thing):
        if isinstance(thing, Tensor):
            packed = {torch.int8: dtype, torch.int32: torch.int64}
            return thing.to(device=device, dtype=dtype if thing.is_floating_point() else packed.get(thing.dtype))
        if isinstance(thing, torch.nn.Module):
            return thing.to(device=device, dtype=dtype)
        attributes = getattr(thing, "__dict__", {})
        held = {k: v.to(device) for k, v in attributes.items() if isinstance(v, (Tensor, torch.nn.Module))}
        if isinstance(thing, type) or not held:
            return thing
        copy = object.__new__(type(thing))
        copy.__dict__.update({**thing.__dict__, **held})
        return copy

    return changed(parts, arrive)
