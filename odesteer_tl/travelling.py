"""What travels to a remote server, where this package is not installed: a method as plain numbers and functions.

`Travelling` steers as the method that it was made from. It and all that it uses are sent as source, so this file
follows the rules of `numerics`: plain classes and functions, no imports that a server does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.numerics import on_sphere, unit_length
from odesteer_tl.strengths import (
    absolute,
    check_index,
    check_no_layer,
    check_strength,
    check_width,
    layer_of,
    of_rows,
    place_of,
    site_name,
)


class State:
    """What one forward pass knows of its chosen tokens; a backend makes a fresh one for every pass.

    `rows[i]` is the batch row of chosen token i; `memory` carries values from one edit to a later one of the pass.
    """

    def __init__(self, rows: Tensor, memory: dict[str, Any] | None = None) -> None:
        self.rows = rows
        self.memory = {} if memory is None else memory


class Slope:
    """A field in plain numbers: v(a) = function(a, *numbers), a slope of `numerics` and what it needs.

    `normalize`: the function is of a/‖a‖, and the chain rule through that is applied. `unit_speed`: v = ∇h/‖∇h‖.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        numbers: tuple[Any, ...],
        normalize: bool = False,
        unit_speed: bool = False,
    ) -> None:
        self.function, self.numbers, self.normalize, self.unit_speed = function, numbers, normalize, unit_speed

    def __call__(self, a: Tensor) -> Tensor:
        g = on_sphere(a, self.function, self.numbers) if self.normalize else self.function(a, *self.numbers)
        return unit_length(g) if self.unit_speed else g

    def over(self, numbers: tuple[Any, ...]) -> Slope:
        """The same function of other numbers."""
        return Slope(self.function, numbers, self.normalize, self.unit_speed)

    def at_unit_speed(self) -> Slope:
        """The same direction, at the length 1."""
        return Slope(self.function, self.numbers, self.normalize, True)


class Travelling:
    """A fitted method that works without this package: `steer` and `edits` are those of the method.

    a(T) = move(a, T, *parts); `move` is a plain function such as `numerics.flowed`, `parts` are numbers, functions,
    slopes, and objects of the user's. `layer`, `d_model`, `processing` and `hook_name` (None: `resid_post`) say where
    the numbers were fitted.
    """

    def __init__(
        self,
        move: Callable[..., Tensor],
        parts: tuple[Any, ...],
        layer: int | None = None,
        d_model: int | None = None,
        processing: str = "unknown",
        hook_name: str | None = None,
    ) -> None:
        self.move, self.parts = move, parts
        self.layer, self.d_model, self.processing, self.hook_name = layer, d_model, processing, hook_name
        self._there: dict[Any, Any] = {}

    def steer(
        self, a: Tensor, T: float | int | Tensor | None = None, *, relative_T: float | int | Tensor | None = None
    ) -> Tensor:
        """a(0) → a(T), shape, dtype and device of `a` [*batch, d_model]; as Method.steer, with the same errors."""
        check_strength(T, relative_T)
        return self._steered(a, T, relative_T)

    def edits(
        self,
        T: float | int | Tensor | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[TravellingEdit]:
        """What is to be carried out in the model, as Method.edits, with the same errors."""
        layer = layer_of(self.layer, layer)
        check_strength(T, relative_T)
        return [TravellingEdit(self._steered, layer, T, relative_T, site_name(self.hook_name))]

    def made_from(self) -> tuple[Any, ...]:
        """The arguments that make it again."""
        return self.move, self.parts, self.layer, self.d_model, self.processing, self.hook_name

    def _steered(self, a: Tensor, T: float | int | Tensor | None, relative_T: float | int | Tensor | None) -> Tensor:
        return steered(a, T, relative_T, self.d_model, self._mover)

    def _mover(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        """`move` with its parts on that device and in that dtype. Copies are made once."""
        place = (device, dtype)
        if place not in self._there:
            if holds_module(self.parts):  # one object, which can be in one place
                self._there.clear()
            with torch.inference_mode(False):  # kept beyond this call, which may run in inference mode
                self._there[place] = arrived(self.parts, device, dtype)
        parts = self._there[place]
        return lambda x, T: self.move(x, T, *parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_there": {}}


class TravellingLayers:
    """Fitted methods that act as one, each at its own site, without this package: as `Layers`, with the same errors."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts

    def each_with(self, T: Any) -> list[Any]:
        """The parts, each with that T."""
        return [(part, T) for part in self.parts]

    def edits(
        self,
        T: float | int | Tensor | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[Any]:
        """The edits of all parts, in the order in which a pass comes to them."""
        check_no_layer(layer)
        edits = [edit for part in self.parts for edit in part.edits(T, relative_T=relative_T)]
        return sorted(edits, key=lambda edit: place_of(edit.write))

    def made_from(self) -> tuple[Any, ...]:
        """The arguments that make it again."""
        return (self.parts,)


class TravellingSite:
    """A place in the model, of a block. Raises ValueError for a layer below 0."""

    def __init__(self, layer: int, name: str = "resid_post") -> None:
        check_index(layer)
        self.layer, self.name = layer, name


class TravellingEdit:
    """Replace a by `steered(a, T, relative_T)` at a site of a layer, on the chosen tokens.

    A tensor T or relative_T holds one value per batch row.
    """

    def __init__(
        self,
        steered: Callable[..., Tensor],
        layer: int,
        T: float | int | Tensor | None,
        relative_T: float | int | Tensor | None,
        site: str = "resid_post",
    ) -> None:
        self.read = self.write = TravellingSite(layer, site)
        self.steered, self.T, self.relative_T = steered, T, relative_T

    def apply(self, read: Tensor, write: Tensor, state: State) -> Tensor:
        """The new value [chosen, d_model] at `write`."""
        return self.steered(write, of_rows(self.T, state.rows), of_rows(self.relative_T, state.rows))


def steered(
    a: Tensor,
    T: float | int | Tensor | None,
    relative_T: float | int | Tensor | None,
    d_model: int | None,
    mover: Callable[[torch.device, torch.dtype], Callable[..., Tensor]],
) -> Tensor:
    """a(T) by mover(device, dtype)(x, T): in float32, or float64 for float64, cast back; `a` itself for the number 0.

    T and relative_T have passed `check_strength`. Raises ValueError for another width than `d_model`.
    """
    check_width(a, d_model)
    strength = relative_T if T is None else T
    if not isinstance(strength, Tensor) and strength == 0:
        return a
    dtype = torch.promote_types(a.dtype, torch.float32)
    x = a.to(dtype)
    return mover(a.device, dtype)(x, absolute(T, relative_T, x)).to(a.dtype)


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
