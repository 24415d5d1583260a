"""Serializable gradient functions, and moving their tensors to a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.integrate import along_sphere, norm, on_sphere, unit_length


class GradientFunction:
    """A vector field as data: v(a) = function(a, *params), with a gradient of `integrate` and its parameters.

    `normalize`: the function takes a/‖a‖, and the chain rule is applied. `unit_speed`: v = ∇h/‖∇h‖. `farthest`: at
    unit speed, activations beyond this norm are scaled back to it first, because their gradient would overflow; the
    direction is the same. h itself is `value(x, *params) + plus`; None: not known.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        params: tuple[Any, ...],
        normalize: bool = False,
        unit_speed: bool = False,
        farthest: float | None = None,
        value: Callable[..., Tensor] | None = None,
        plus: float = 0.0,
    ) -> None:
        self.function, self.params, self.normalize, self.unit_speed = function, params, normalize, unit_speed
        self.farthest, self.value, self.plus = farthest, value, plus

    def __call__(self, a: Tensor) -> Tensor:
        if self.normalize:
            return (along_sphere if self.unit_speed else on_sphere)(a, self.function, self.params)
        if not self.unit_speed:
            return self.function(a, *self.params)
        if self.farthest is not None:
            a = a * (self.farthest / norm(a)).clamp_max(1.0)
        return unit_length(self.function(a, *self.params))

    def over(self, params: tuple[Any, ...]) -> GradientFunction:
        """The same function with other parameters."""
        return self._with(params=params)

    def at_unit_speed(self) -> GradientFunction:
        """The same direction, scaled to length 1."""
        return self._with(unit_speed=True)

    def raised(self, plus: float) -> GradientFunction:
        """The gradient of h + plus, which is the same."""
        return self._with(plus=self.plus + plus)

    def _with(self, **parts: Any) -> GradientFunction:
        copy = object.__new__(type(self))
        copy.__dict__.update({**self.__dict__, **parts})
        return copy


class Copies:
    """Copies of one object, by device and dtype; each is made once. A pickled or copied `Copies` is empty."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}

    def at(self, key: Any, make: Callable[[], Any]) -> Any:
        """The copy under `key`; `make` makes it the first time."""
        if key not in self.made:
            with torch.inference_mode(False):  # the copy outlives this call, which may run in inference mode
                self.made[key] = make()
        return self.made[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"made": {}}


def changed(thing: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples and gradient functions, with each leaf (tensor, number, function or object) as change(leaf)."""
    if isinstance(thing, GradientFunction):
        return thing.over(changed(thing.params, change))
    if type(thing) is tuple:  # a named tuple is the user's own object
        return tuple(changed(part, change) for part in thing)
    return change(thing)


def leaves(thing: Any) -> list[Any]:
    """The leaves that `changed` would pass to `change`."""
    collected: list[Any] = []
    changed(thing, collected.append)
    return collected


def holds_module(parts: Any) -> bool:
    """Whether the parts of a method contain a module, directly or as an attribute of a user's object."""
    candidates = [candidate for leaf in leaves(parts) for candidate in (leaf, *getattr(leaf, "__dict__", {}).values())]
    return any(isinstance(candidate, torch.nn.Module) for candidate in candidates)


def to_device(parts: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The parts of a method with tensors on `device`, and floating-point tensors in `dtype`.

    Undoes `payloads.packed`: int8 becomes `dtype`, int32 becomes int64. A user's module moves as a whole. A user's
    other object is copied, with its tensors and modules on `device` in their own dtypes.
    """

    def moved(thing):
        if isinstance(thing, Tensor):
            packed = {torch.int8: dtype, torch.int32: torch.int64}
            return thing.to(device=device, dtype=dtype if thing.is_floating_point() else packed.get(thing.dtype))
        if isinstance(thing, torch.nn.Module):
            return thing.to(device=device, dtype=dtype)
        attributes = getattr(thing, "__dict__", {})
        moved_attributes = {k: v.to(device) for k, v in attributes.items() if isinstance(v, (Tensor, torch.nn.Module))}
        if isinstance(thing, type) or not moved_attributes:
            return thing
        copy = object.__new__(type(thing))
        copy.__dict__.update({**thing.__dict__, **moved_attributes})
        return copy

    return changed(parts, moved)
