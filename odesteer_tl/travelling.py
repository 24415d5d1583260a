"""What travels to a remote server, where this package is not installed: a method as plain numbers and functions.

`Travelling` steers as the method that it was made from. It and all that it uses are sent as source, so this file
follows the rules of `numerics`: plain classes and functions, no imports that a server does not have. What a method at
home shares with it (checks of T, precision, the choice of tokens) is written down here once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.numerics import norm, on_sphere, per_activation, unit_length


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
    slopes, and objects of the user's. `layer`, `d_model` and `processing` say where the numbers were fitted.
    """

    def __init__(
        self,
        move: Callable[..., Tensor],
        parts: tuple[Any, ...],
        layer: int | None = None,
        d_model: int | None = None,
        processing: str = "unknown",
    ) -> None:
        self.move, self.parts = move, parts
        self.layer, self.d_model, self.processing = layer, d_model, processing
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
        return [TravellingEdit(self._steered, layer, T, relative_T)]

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


class TravellingSite:
    """A place in the model, `resid_post` of a block. Raises ValueError for a layer below 0."""

    def __init__(self, layer: int) -> None:
        check_index(layer)
        self.layer, self.name = layer, "resid_post"


class TravellingEdit:
    """Replace a by `steered(a, T, relative_T)` at `resid_post` of a layer, on the chosen tokens.

    A tensor T or relative_T holds one value per batch row.
    """

    def __init__(
        self,
        steered: Callable[..., Tensor],
        layer: int,
        T: float | int | Tensor | None,
        relative_T: float | int | Tensor | None,
    ) -> None:
        self.read = self.write = TravellingSite(layer)
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


def pairs_of(method: Any, T: Any, relative_T: Any) -> list[Any]:
    """Methods with their T, in the order in which they act; raises ValueError for lists that are no such pairs."""
    if not isinstance(method, Sequence):
        return [(method, T)]
    if T is not None or relative_T is not None or not method:
        raise ValueError("A list of methods carries its strengths: [(method_a, 5.0), (method_b, 2.0)], and no T.")
    if any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in method):
        raise ValueError("A list of methods holds pairs: [(method_a, 5.0), (method_b, 2.0)].")
    return list(method)


def absolute(T: float | int | Tensor | None, relative_T: float | int | Tensor | None, x: Tensor) -> Any:
    """T, or relative_T·‖x‖ for each activation."""
    return T if relative_T is None else (per_activation(relative_T, x) * norm(x)).squeeze(-1)


def of_rows(strength: float | int | Tensor | None, rows: Tensor) -> float | int | Tensor | None:
    """The strength of each chosen token, where a tensor holds one per batch row and `rows` says whose each token is."""
    if not isinstance(strength, Tensor) or strength.ndim == 0:
        return strength
    return strength.to(rows.device, non_blocking=True)[rows]


def check_strength(T: Any, relative_T: Any) -> None:
    """Raise ValueError for both or neither of T and relative_T, or for one that is no number, or not finite."""
    if (T is None) == (relative_T is None):
        raise ValueError(f"Give either T or relative_T, got T={T}, relative_T={relative_T}.")
    strength = relative_T if T is None else T
    if not isinstance(strength, (int, float, Tensor)):
        raise ValueError(f"T is a number or a tensor, one value per row; got a {type(strength).__name__}.")
    if not bool(torch.isfinite(torch.as_tensor(strength)).all()):
        raise ValueError(f"T and relative_T must be finite, got {strength}.")


def check_width(a: Tensor, d_model: int | None) -> None:
    """Raise ValueError where a method fitted at `d_model` meets activations of another width."""
    if d_model is not None and a.shape[-1] != d_model:
        raise ValueError(f"This method was fitted at d_model {d_model}, got {tuple(a.shape)}.")


def check_index(layer: int) -> None:
    """Raise ValueError for a layer that is no integer, or below 0."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise ValueError(f"Layers are block indices counted from 0, got {layer!r}.")


def layer_of(fitted: int | None, given: int | None) -> int:
    """The layer given, or else the one fitted. Raises ValueError where neither is known."""
    layer = fitted if given is None else given
    if layer is None:
        raise ValueError("This method was fitted without a layer: pass layer=, for example layer=6.")
    return layer


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
