"""A fitted method as plain tensors and functions, for servers that do not have this package.

`PortableMethod` steers exactly as the method that it was made from. It is sent as source, with all that it uses, so
this file follows the rules of `integrate`: plain classes and functions, and no import that a server does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.gradients import Copies, holds_module, to_device
from odesteer_tl.portable.integrate import per_activation
from odesteer_tl.portable.precision import cast_back, check_width, compute_dtype, in_full
from odesteer_tl.portable.sites import Site, check_no_layer, layer_of, place_of
from odesteer_tl.portable.strength import Strength, check_fits


class PortableMethod:
    """A fitted method that works without this package, with the same `steer` and `edits`.

    a(T) = move(a, T, *parts); `move` is a plain function such as `integrate.flowed`, `parts` are tensors, numbers,
    functions, gradient functions, and objects of the user's. `layer`, `d_model`, `processing` and `hook_name` (None:
    `resid_post`) say where it was fitted. With `correction` the edits add T·correction(query, *parts), where the query
    is the activation of the prompt's last token. `limits` (message, low, high) bound T.
    """

    def __init__(
        self,
        move: Callable[..., Tensor],
        parts: tuple[Any, ...],
        layer: int | None = None,
        d_model: int | None = None,
        processing: str = "unknown",
        hook_name: str | None = None,
        correction: Callable[..., Tensor] | None = None,
        limits: Any = None,
    ) -> None:
        self.move, self.parts, self.correction, self.limits = move, parts, correction, limits
        self.layer, self.d_model, self.processing, self.hook_name = layer, d_model, processing, hook_name
        self._copies = Copies()

    def steer(
        self,
        a: Tensor,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
    ) -> Tensor:
        """a(0) → a(T) in the shape, dtype and device of `a` [*batch, d_model]. Raises the errors of Method.steer."""
        return self._steered(a, Strength.of(T, relative_T).check(a.dtype, self.limits))

    def edits(
        self,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[Edit]:
        """As Method.edits. Raises the same errors."""
        site = Site.fitted(self.hook_name, layer_of(self.layer, layer))
        strength = Strength.of(T, relative_T).check(limits=self.limits)
        of_query = None if self.correction is None else self._correction_of
        return [Edit(site, site, at_strength(self._steered, strength, of_query is not None), of_query)]

    def init_args(self) -> tuple[Any, ...]:
        """The arguments of `__init__` that rebuild it."""
        site = self.layer, self.d_model, self.processing, self.hook_name
        return self.move, self.parts, *site, self.correction, self.limits

    def _correction_of(self, query: Tensor) -> Tensor:
        return computed(query, self.d_model, self._corrector)

    def _corrector(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        parts, correction = self._parts(device, dtype), self.correction
        assert correction is not None
        return lambda x: correction(x, *parts)

    def _steered(self, a: Tensor, strength: Strength) -> Tensor:
        return steered(a, strength, self.d_model, self._mover)

    def _mover(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        parts = self._parts(device, dtype)
        return lambda x, T: self.move(x, T, *parts)

    def _parts(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """The parts on a device and in a dtype. Copies are made once."""
        key = (device, dtype)
        if key not in self._copies.made and holds_module(self.parts):  # a module is one object, on one device
            self._copies.made.clear()
        return self._copies.at(key, lambda: to_device(self.parts, device, dtype))


class PortableLayers:
    """Several fitted methods as one, each at its own site: `Layers` without this package, with the same errors."""

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
        """The edits of all parts, in the order of a forward pass."""
        return edits_of(self.parts, T, relative_T, layer)

    def init_args(self) -> tuple[Any, ...]:
        """The arguments of `__init__` that rebuild it."""
        return (self.parts,)


def at_strength(
    steered: Callable[[Tensor, Strength], Tensor], strength: Strength, by_query: bool = False
) -> Callable[[Tensor, Tensor, State], Tensor]:
    """The `apply` of an edit: a → steered(a, strength), or, with `by_query`, a → a + T·(value at read).

    The returned function raises ValueError for a T that does not fit the dtype of the activations.
    """
    size = strength.size

    def apply(read, write, state):
        check_fits(size, write.dtype)
        row_strength = strength.of_rows(state)
        return added(write, row_strength, read) if by_query else steered(write, row_strength)

    return apply


def edits_of(parts: tuple[Any, ...], T: Any, relative_T: Any, layer: int | None) -> list[Edit]:
    """The edits of all parts of `Layers`, in the order of a forward pass. Raises ValueError for a `layer`, because each
    part has its own, and as the parts do."""
    check_no_layer(layer)
    edits = [edit for part in parts for edit in part.edits(T, relative_T=relative_T)]
    return sorted(edits, key=lambda edit: place_of(edit.write))


def steered(
    a: Tensor,
    strength: Strength,
    d_model: int | None,
    mover: Callable[[torch.device, torch.dtype], Callable[..., Tensor]],
) -> Tensor:
    """a(T) = mover(device, dtype)(a, T), computed in `compute_dtype` and cast back; `a` itself if the strength is 0.

    The caller has called `strength.check`. Raises ValueError for another width than `d_model`.
    """
    check_width(a, d_model)
    if strength.is_zero:
        return a
    x = a.to(compute_dtype(a.dtype))
    with in_full(a.device):
        return cast_back(mover(a.device, x.dtype)(x, strength.at(x)), a.dtype, strength.goes_far)


def computed(
    a: Tensor, d_model: int | None, maker: Callable[[torch.device, torch.dtype], Callable[[Tensor], Tensor]]
) -> Tensor:
    """f(a) with f = maker(device, dtype), in the precision of `steered`. Raises ValueError for another width."""
    check_width(a, d_model)
    x = a.to(compute_dtype(a.dtype))
    return cast_back(maker(a.device, x.dtype)(x), a.dtype)


def added(a: Tensor, strength: Strength, v: Tensor) -> Tensor:
    """a + T·v in the precision of `steered`; `a` itself if the strength is 0."""
    if strength.is_zero:
        return a
    x = a.to(compute_dtype(a.dtype))
    return cast_back(x + per_activation(strength.at(x), x) * v.to(x), a.dtype, strength.goes_far)
