"""What travels to a remote server, where this package is not installed: a method as plain numbers and functions.

`Travelling` steers as the method that it was made from. It and all that it uses are sent as source, so this file
follows the rules of `numerics`: plain classes and functions, no imports that a server does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.numerics import per_activation
from odesteer_tl.slopes import arrived, holds_module
from odesteer_tl.strengths import (
    absolute,
    check_fits,
    check_index,
    check_no_layer,
    check_strength,
    check_width,
    given_back,
    goes_far,
    layer_of,
    of_rows,
    place_of,
    site_name,
    size_of,
    working,
)


class State:
    """What one forward pass knows of its chosen tokens; a backend makes a fresh one for every pass.

    `rows[i]` is the batch row of chosen token i; `memory` carries values from one edit to a later one of the pass.
    """

    def __init__(self, rows: Tensor, memory: dict[str, Any] | None = None) -> None:
        self.rows = rows
        self.memory = {} if memory is None else memory


class Travelling:
    """A fitted method that works without this package: `steer` and `edits` are those of the method.

    a(T) = move(a, T, *parts); `move` is a plain function such as `numerics.flowed`, `parts` are numbers, functions,
    slopes, and objects of the user's. `layer`, `d_model`, `processing` and `hook_name` (None: `resid_post`) say where
    the numbers were fitted. With `answer` the edits add T·answer(query, *parts), the query being the activation of the
    prompt's last token. `limits` are those of T.
    """

    def __init__(
        self,
        move: Callable[..., Tensor],
        parts: tuple[Any, ...],
        layer: int | None = None,
        d_model: int | None = None,
        processing: str = "unknown",
        hook_name: str | None = None,
        answer: Callable[..., Tensor] | None = None,
        limits: Any = None,
    ) -> None:
        self.move, self.parts, self.answer, self.limits = move, parts, answer, limits
        self.layer, self.d_model, self.processing, self.hook_name = layer, d_model, processing, hook_name
        self._there: dict[Any, Any] = {}

    def steer(
        self, a: Tensor, T: float | int | Tensor | None = None, *, relative_T: float | int | Tensor | None = None
    ) -> Tensor:
        """a(0) → a(T), shape, dtype and device of `a` [*batch, d_model]; as Method.steer, with the same errors."""
        check_strength(T, relative_T, a.dtype, self.limits)
        return self._steered(a, T, relative_T)

    def edits(
        self,
        T: float | int | Tensor | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[TravellingEdit]:
        """As Method.edits, with the same errors."""
        layer = layer_of(self.layer, layer)
        check_strength(T, relative_T, None, self.limits)
        asks = None if self.answer is None else self._answered
        return [TravellingEdit(self._steered, layer, T, relative_T, site_name(self.hook_name), asks)]

    def made_from(self) -> tuple[Any, ...]:
        """The arguments that make it again."""
        own = self.move, self.parts, self.layer, self.d_model, self.processing, self.hook_name, self.answer
        return *own, self.limits

    def _answered(self, query: Tensor) -> Tensor:
        return computed(query, self.d_model, self._answerer)

    def _answerer(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        parts, answer = self._parts(device, dtype), self.answer
        assert answer is not None
        return lambda x: answer(x, *parts)

    def _steered(self, a: Tensor, T: float | int | Tensor | None, relative_T: float | int | Tensor | None) -> Tensor:
        return steered(a, T, relative_T, self.d_model, self._mover)

    def _mover(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        parts = self._parts(device, dtype)
        return lambda x, T: self.move(x, T, *parts)

    def _parts(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """The parts on that device and in that dtype. Copies are made once."""
        place = (device, dtype)
        if place not in self._there:
            if holds_module(self.parts):  # one object, which can be in one place
                self._there.clear()
            with torch.inference_mode(False):  # kept beyond this call, which may run in inference mode
                self._there[place] = arrived(self.parts, device, dtype)
        return self._there[place]

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

    A tensor T or relative_T holds one value per batch row. With `of_query` (see Edit) it is a + T·of_query(query).
    """

    def __init__(
        self,
        steered: Callable[..., Tensor],
        layer: int,
        T: float | int | Tensor | None,
        relative_T: float | int | Tensor | None,
        site: str = "resid_post",
        of_query: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.read = self.write = TravellingSite(layer, site)
        self.steered, self.T, self.relative_T, self.of_query = steered, T, relative_T, of_query
        self.size = size_of(T, relative_T)

    def apply(self, read: Tensor, write: Tensor, state: State) -> Tensor:
        """The new value [chosen, d_model] at `write`. Raises ValueError for a T that does not fit its dtype."""
        check_fits(self.size, write.dtype)
        T, relative_T = of_rows(self.T, state), of_rows(self.relative_T, state)
        return self.steered(write, T, relative_T) if self.of_query is None else added(write, T, relative_T, read)


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
    x = a.to(working(a.dtype))
    return given_back(mover(a.device, x.dtype)(x, absolute(T, relative_T, x)), a.dtype, goes_far(T))


def computed(
    a: Tensor, d_model: int | None, maker: Callable[[torch.device, torch.dtype], Callable[[Tensor], Tensor]]
) -> Tensor:
    """f(a), f = maker(device, dtype), in the precision of `steered`. Raises ValueError for another width."""
    check_width(a, d_model)
    x = a.to(working(a.dtype))
    return given_back(maker(a.device, x.dtype)(x), a.dtype)


def added(a: Tensor, T: float | int | Tensor | None, relative_T: float | int | Tensor | None, v: Tensor) -> Tensor:
    """a + T·v in the precision of `steered`; `a` itself for the number 0."""
    strength = relative_T if T is None else T
    if not isinstance(strength, Tensor) and strength == 0:
        return a
    x = a.to(working(a.dtype))
    return given_back(x + per_activation(absolute(T, relative_T, x), x) * v.to(x), a.dtype, goes_far(T))
