"""A fitted method as plain numbers and functions, for servers that do not have this package.

`PortableMethod` steers as the method that it was made from. It and all that it uses are sent as source, so this file
follows the rules of `integrate`: plain classes and functions, no imports that a server does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.gradients import Copies, holds_module, to_device
from odesteer_tl.portable.integrate import per_activation
from odesteer_tl.portable.precision import check_width, given_back, in_full, working
from odesteer_tl.portable.sites import Site, check_no_layer, layer_of, place_of
from odesteer_tl.portable.strength import Strength, check_fits


class PortableMethod:
    """A fitted method that works without this package: `steer` and `edits` are those of the method.

    a(T) = move(a, T, *parts); `move` is a plain function such as `integrate.flowed`, `parts` are numbers, functions,
    gradient functions, and objects of the user's. `layer`, `d_model`, `processing` and `hook_name` (None: `resid_post`)
    say where the numbers were fitted. With `answer` the edits add T·answer(query, *parts), of the activation of the
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
        self._there = Copies()

    def steer(
        self,
        a: Tensor,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
    ) -> Tensor:
        """a(0) → a(T), shape, dtype and device of `a` [*batch, d_model]; as Method.steer, with the same errors."""
        return self._steered(a, Strength.of(T, relative_T).check(a.dtype, self.limits))

    def edits(
        self,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[Edit]:
        """As Method.edits, with the same errors."""
        site = Site.fitted(self.hook_name, layer_of(self.layer, layer))
        strength = Strength.of(T, relative_T).check(limits=self.limits)
        of_query = None if self.answer is None else self._answered
        return [Edit(site, site, at_strength(self._steered, strength, of_query is not None), of_query)]

    def init_args(self) -> tuple[Any, ...]:
        """The arguments that make it again."""
        own = self.move, self.parts, self.layer, self.d_model, self.processing, self.hook_name, self.answer
        return *own, self.limits

    def _answered(self, query: Tensor) -> Tensor:
        return computed(query, self.d_model, self._answerer)

    def _answerer(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        parts, answer = self._parts(device, dtype), self.answer
        assert answer is not None
        return lambda x: answer(x, *parts)

    def _steered(self, a: Tensor, strength: Strength) -> Tensor:
        return steered(a, strength, self.d_model, self._mover)

    def _mover(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        parts = self._parts(device, dtype)
        return lambda x, T: self.move(x, T, *parts)

    def _parts(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """The parts on that device and in that dtype. Copies are made once."""
        place = (device, dtype)
        if place not in self._there.made and holds_module(self.parts):  # one object, which can be in one place
            self._there.made.clear()
        return self._there.at(place, lambda: to_device(self.parts, device, dtype))


class PortableLayers:
    """Fitted methods that act as one, each at its own site, without this package: as `Layers`, with the same errors."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts

    def as_methods(self) -> tuple[Any, ...]:
        """The parts."""
        return self.parts

    def edits(
        self,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[Edit]:
        """The edits of all parts, in the order in which a pass comes to them."""
        return edits_of(self.parts, Strength.of(T, relative_T), layer)

    def init_args(self) -> tuple[Any, ...]:
        """The arguments that make it again."""
        return (self.parts,)


def at_strength(
    steered: Callable[[Tensor, Strength], Tensor], strength: Strength, by_query: bool = False
) -> Callable[[Tensor, Tensor, State], Tensor]:
    """What an edit applies: a → steered(a, strength), or a + T·read where `by_query`: the read value is a vector.

    What it returns raises ValueError for a T that does not fit the dtype of the activations.
    """
    size = strength.size

    def apply(read, write, state):
        check_fits(size, write.dtype)
        own = strength.of_rows(state)
        return added(write, own, read) if by_query else steered(write, own)

    return apply


def edits_of(parts: tuple[Any, ...], strength: Strength, layer: int | None) -> list[Edit]:
    """The edits of all parts of `Layers`, in the order in which a pass comes to them. Raises ValueError for a `layer`,
    which would put all parts at one, and as the parts do."""
    check_no_layer(layer)
    edits = [edit for part in parts for edit in part.edits(strength)]
    return sorted(edits, key=lambda edit: place_of(edit.write))


def steered(
    a: Tensor,
    strength: Strength,
    d_model: int | None,
    mover: Callable[[torch.device, torch.dtype], Callable[..., Tensor]],
) -> Tensor:
    """a(T) by mover(device, dtype)(x, T): in float32, or float64 for float64, cast back; `a` itself for the number 0.

    The strength has passed its `check`. Raises ValueError for another width than `d_model`.
    """
    check_width(a, d_model)
    if strength.is_zero:
        return a
    x = a.to(working(a.dtype))
    with in_full(a.device):
        return given_back(mover(a.device, x.dtype)(x, strength.at(x)), a.dtype, strength.goes_far)


def computed(
    a: Tensor, d_model: int | None, maker: Callable[[torch.device, torch.dtype], Callable[[Tensor], Tensor]]
) -> Tensor:
    """f(a), f = maker(device, dtype), in the precision of `steered`. Raises ValueError for another width."""
    check_width(a, d_model)
    x = a.to(working(a.dtype))
    return given_back(maker(a.device, x.dtype)(x), a.dtype)


def added(a: Tensor, strength: Strength, v: Tensor) -> Tensor:
    """a + T·v in the precision of `steered`; `a` itself for the number 0."""
    if strength.is_zero:
        return a
    x = a.to(working(a.dtype))
    return given_back(x + per_activation(strength.at(x), x) * v.to(x), a.dtype, strength.goes_far)
