"""Feedback: laws that measure what enters a block and add to what leaves it, layer after layer, in plain numbers.

With v a unit direction and β* a set-point of a layer, for every chosen token z that enters the block:
gap α = T·β* − vᵀz; error e = α v. A-LQR adds u = α w. S-PID adds u = K_p e + K_i Σ_{j≤k} e_j + K_d (e_k − e_{k−1}).
Several features have a v and a β* each, and what they ask for is summed. `Feedback` works without this package, so this
file travels: it follows the rules of `integrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.gradients import Copies, to_device
from odesteer_tl.portable.precision import check_width, given_back, working
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength, check_fits


def gaps(z: Tensor, T: float | int | Tensor, directions: Tensor, set_points: Tensor) -> Tensor:
    """α = T·β* − vᵀz [chosen, features], signed: beyond its set-point a feature is pushed back.

    `directions` [features, d_model], `set_points` [features], T a number or one per token [chosen].
    """
    aims = T.to(z).unsqueeze(-1) * set_points if isinstance(T, Tensor) and T.ndim else T * set_points
    return aims - z @ directions.T


def linear_quadratic(
    z: Tensor, T: float | int | Tensor, memory: dict[str, Any], directions: Tensor, set_points: Tensor, answers: Tensor
) -> Tensor:
    """u = Σ α w [chosen, d_model], `answers` [features, d_model] the w = K v. Nothing is remembered."""
    return gaps(z, T, directions, set_points) @ answers


def proportional_integral_derivative(
    z: Tensor,
    T: float | int | Tensor,
    memory: dict[str, Any],
    directions: Tensor,
    set_points: Tensor,
    kp: float,
    ki: float,
    kd: float,
    forgets: bool,
) -> Tensor:
    """u [chosen, d_model]; `memory` carries Σe and the last e from layer to layer, both 0 at first.

    `forgets`: at this layer the sum is set to 0, its own error included.
    """
    error = gaps(z, T, directions, set_points) @ directions
    before = memory["error"].to(error) if "error" in memory else torch.zeros_like(error)
    total = error + memory["sum"].to(error) if "sum" in memory else error
    total = torch.zeros_like(total) if forgets else total
    memory["error"], memory["sum"] = error, total
    return kp * error + ki * total + kd * (error - before)


class Feedback:
    """A loop over layers without this package: `edits` are those of the method.

    u = law(z, T, memory, *numbers), of the numbers of a layer: tensors and tuples among `params` hold one entry for
    each of `layers` (ascending), anything else is for all. `carries`: what is remembered is kept from one forward pass
    to the next, where both have as many chosen tokens, for as long as one set of edits is in use.
    """

    hook_name = None

    def __init__(
        self,
        law: Callable[..., Tensor],
        params: tuple[Any, ...],
        layers: tuple[int, ...],
        d_model: int | None = None,
        processing: str = "unknown",
        carries: bool = False,
    ) -> None:
        self.law, self.params, self.layers = law, params, layers
        self.d_model, self.processing, self.carries = d_model, processing, carries
        self._there = Copies()

    def edits(
        self,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[Edit]:
        """One for each layer, in their order: z is read at the input of its block, u is added to the output. T counts
        in set-points. Raises ValueError for a `layer`, which would put all at one, for relative_T, and as `Strength`
        does."""
        strength = Strength.of(T, relative_T)
        if strength.T is None:
            raise ValueError(
                "A closed loop is told how far to go by its set-points, whatever ‖a‖: T multiplies those, and "
                "relative_T has no meaning; give T, for example T=1.0."
            )
        if layer is not None:
            raise ValueError(
                f"A closed loop acts at the layers {list(self.layers)} that it was fitted at, and layer={layer} would "
                "put them all at one: leave layer= out, and say layers= in the fit."
            )
        kept: dict[str, Any] | None = {} if self.carries else None
        laws = [LayerLaw(self, number, strength, kept) for number in range(len(self.layers))]
        sites = [(Site(layer, "resid_pre"), Site(layer)) for layer in self.layers]
        return [Edit(*where, law.apply) for where, law in zip(sites, laws, strict=True)]

    def init_args(self) -> tuple[Any, ...]:
        """The arguments that make it again."""
        return self.law, self.params, self.layers, self.d_model, self.processing, self.carries

    def numbers_of(self, number: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """The numbers of the layer with that number on a device and in a dtype. Copies are made once."""
        return self._there.at((number, device, dtype), lambda: to_device(self._own(number), device, dtype))

    def _own(self, number: int) -> tuple[Any, ...]:
        return tuple(each[number] if isinstance(each, (Tensor, tuple)) else each for each in self.params)


class LayerLaw:
    """The law at one layer: what the edit there applies, from z that enters the block to what leaves it."""

    def __init__(self, loop: Feedback, number: int, strength: Strength, kept: dict[str, Any] | None = None) -> None:
        self.loop, self.number, self.strength, self.kept, self.size = loop, number, strength, kept, strength.size

    def apply(self, read: Tensor, write: Tensor, state: State) -> Tensor:
        """The new value [chosen, d_model] at `write`, computed in float32, or float64 for float64. Raises ValueError
        for another width than the one fitted, and a T that does not fit the dtype."""
        check_width(read, self.loop.d_model)
        check_fits(self.size, write.dtype)
        z = read.to(working(read.dtype))
        params = self.loop.numbers_of(self.number, z.device, z.dtype)
        memory = state.memory if self.kept is None else self._carried(self.kept, z)
        u = self.loop.law(z, self.strength.of_rows(state).T, memory, *params)
        return given_back(write.to(z.dtype) + u, write.dtype)

    def _carried(self, kept: dict[str, Any], z: Tensor) -> dict[str, Any]:
        """What the pass before left, where this one begins: no derivative reaches back into that."""
        if self.number == 0:
            same = {name: value.detach() for name, value in kept.items() if value.shape == z.shape}
            kept.clear()
            kept.update(same)
        return kept
