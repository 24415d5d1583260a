"""Feedback laws: at each layer they measure the input of the block and add a correction to its output.

With v a unit direction and β* a set-point of a layer, for every chosen token z that enters the block:
gap α = T·β* − vᵀz; error e = α v. A-LQR adds u = α w. S-PID adds u = K_p e + K_i Σ_{j≤k} e_j + K_d (e_k − e_{k−1}).
Each feature has its own v and β*, and the corrections of several features are summed. This file is sent to servers, so
it follows the rules of `integrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.gradients import Copies, to_device
from odesteer_tl.portable.precision import cast_back, check_width, compute_dtype
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength, check_fits


def gaps(z: Tensor, T: float | int | Tensor, directions: Tensor, set_points: Tensor) -> Tensor:
    """α = T·β* − vᵀz [chosen, features]. It is negative beyond the set-point: the feature is pushed back.

    `directions` [features, d_model], `set_points` [features], T a number or one per token [chosen].
    """
    targets = T.to(z).unsqueeze(-1) * set_points if isinstance(T, Tensor) and T.ndim else T * set_points
    return targets - z @ directions.T


def linear_quadratic(
    z: Tensor,
    T: float | int | Tensor,
    memory: dict[str, Any],
    directions: Tensor,
    set_points: Tensor,
    corrections: Tensor,
) -> Tensor:
    """u = Σ α w [chosen, d_model], with `corrections` w = K v [features, d_model]. `memory` is not used."""
    return gaps(z, T, directions, set_points) @ corrections


def proportional_integral_derivative(
    z: Tensor,
    T: float | int | Tensor,
    memory: dict[str, Any],
    directions: Tensor,
    set_points: Tensor,
    kp: float,
    ki: float,
    kd: float,
    resets: bool,
) -> Tensor:
    """u [chosen, d_model]. `memory` carries Σe and the last e from layer to layer; both start at 0.

    `resets`: at this layer the sum, including its own error, is set to 0.
    """
    error = gaps(z, T, directions, set_points) @ directions
    previous = memory["error"].to(error) if "error" in memory else torch.zeros_like(error)
    total = error + memory["sum"].to(error) if "sum" in memory else error
    total = torch.zeros_like(total) if resets else total
    memory["error"], memory["sum"] = error, total
    return kp * error + ki * total + kd * (error - previous)


class Feedback:
    """A closed loop over layers that works without this package; it gives the same `edits` as the method.

    u = law(z, T, memory, *params). Tensors and tuples among `params` hold one entry per layer of `layers` (ascending);
    other values are shared by all layers. `carries`: the memory is kept from one forward pass to the next if both have
    the same number of chosen tokens. A new call of `edits` starts with an empty memory.
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
        self._copies = Copies()

    def edits(
        self,
        T: float | int | Tensor | Strength | None = None,
        *,
        relative_T: float | int | Tensor | None = None,
        layer: int | None = None,
    ) -> list[Edit]:
        """One edit per layer, in order: z is read at the input of the block, u is added to its output. T is in units of
        the set-points. Raises ValueError for a `layer`, because every edit has its own, for relative_T, and as
        `Strength` does."""
        strength = Strength.of(T, relative_T)
        if strength.T is None:
            raise ValueError(
                "T multiplies the set-points of a closed loop, which do not depend on ‖a‖, so relative_T has no "
                "meaning: give T, for example T=1.0."
            )
        if layer is not None:
            raise ValueError(
                f"A closed loop acts at the layers {list(self.layers)} that it was fitted at, and layer={layer} would "
                "put them all at one layer: leave layer= out, and give layers= in the fit."
            )
        memory: dict[str, Any] | None = {} if self.carries else None
        laws = [LayerLaw(self, number, strength, memory) for number in range(len(self.layers))]
        sites = [(Site(layer, "resid_pre"), Site(layer)) for layer in self.layers]
        return [Edit(*read_and_write, law.apply) for read_and_write, law in zip(sites, laws, strict=True)]

    def init_args(self) -> tuple[Any, ...]:
        """The arguments of `__init__` that rebuild it."""
        return self.law, self.params, self.layers, self.d_model, self.processing, self.carries

    def params_of(self, number: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """The parameters of layer `layers[number]` on a device and in a dtype. Copies are made once."""
        return self._copies.at((number, device, dtype), lambda: to_device(self._params_at(number), device, dtype))

    def _params_at(self, number: int) -> tuple[Any, ...]:
        return tuple(param[number] if isinstance(param, (Tensor, tuple)) else param for param in self.params)


class LayerLaw:
    """The law at one layer, as the `apply` of an edit: it reads the block's input z and changes the block's output."""

    def __init__(self, loop: Feedback, number: int, strength: Strength, memory: dict[str, Any] | None = None) -> None:
        self.loop, self.number, self.strength, self.carried, self.size = loop, number, strength, memory, strength.size

    def apply(self, read: Tensor, write: Tensor, state: State) -> Tensor:
        """The new value [chosen, d_model] at `write`, computed in float32, or in float64 for float64 activations.
        Raises ValueError for another width than the fitted one, and for a T that does not fit the dtype."""
        check_width(read, self.loop.d_model)
        check_fits(self.size, write.dtype)
        z = read.to(compute_dtype(read.dtype))
        params = self.loop.params_of(self.number, z.device, z.dtype)
        memory = state.memory if self.carried is None else self._carried(self.carried, z)
        u = self.loop.law(z, self.strength.of_rows(state).T, memory, *params)
        return cast_back(write.to(z.dtype) + u, write.dtype)

    def _carried(self, memory: dict[str, Any], z: Tensor) -> dict[str, Any]:
        """The memory of the previous pass, detached from its graph when a new pass begins."""
        if self.number == 0:
            compatible = {name: value.detach() for name, value in memory.items() if value.shape == z.shape}
            memory.clear()
            memory.update(compatible)
        return memory
