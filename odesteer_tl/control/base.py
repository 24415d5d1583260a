"""The base of closed loops over layers, and the contrastive signal that they track.

State z_k: the input of block k at the steered token. Its feature is β_k = v_kᵀz_k, v_k = e_k/‖e_k‖, e_k the difference
of the means of desired and undesired texts there, at the last token. The set-point is β*_k = T‖e_k‖, or a schedule of
the user's. The control is added to the output of the same block, so the next block is the first to read it.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Time, TimeOrStrength
from odesteer_tl.backends.collect import collect_layers
from odesteer_tl.backends.model_info import layers_chosen
from odesteer_tl.backends.tokenize import Texts
from odesteer_tl.data.degeneracy import ROUNDING
from odesteer_tl.data.origin import Origin
from odesteer_tl.methods.base import Method
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.feedback import Feedback
from odesteer_tl.portable.sites import check_index
from odesteer_tl.portable.strength import Strength
from odesteer_tl.remote.payloads import packed

SomeController = TypeVar("SomeController", bound="FeedbackController")
PerFeature = Float[Tensor, "layers features d_model"]
SetPoints = Float[Tensor, "layers features"]


class Signal(NamedTuple):
    """v and ‖e‖ of each layer and feature, with the layers and the origin."""

    directions: PerFeature
    sizes: SetPoints
    layers: tuple[int, ...]
    origin: Origin


class FeedbackController(Method):
    """A method that reads the inputs of blocks and writes to their outputs, at `layers` (ascending).

    T multiplies the set-points. T = 0 is not "no steering": it drives the features to 0. `layer` is None. A single
    activation has no map, so `steer` and `vector_field` raise ValueError.
    """

    directions: PerFeature
    set_points: SetPoints
    layers: tuple[int, ...]
    origin: Origin

    several = True
    speed = None

    def __post_init__(self) -> None:
        for number in self.layers:
            check_index(number)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers are different block indices, ascending, at least one; got {self.layers}.")
        shape = tuple(self.directions.shape)
        if len(shape) != 3 or shape[0] != len(self.layers) or tuple(self.set_points.shape) != shape[:2]:
            raise ValueError(
                f"{len(self.layers)} layers need directions [layers, features, d_model] and set_points [layers, "
                f"features], got {shape} and {tuple(self.set_points.shape)}."
            )
        if self.origin.d_model not in (None, shape[2]):
            raise ValueError(
                f"The directions have {shape[2]} numbers, but d_model of their origin is {self.origin.d_model}."
            )

    @property
    def barrier(self) -> None:
        """None: h is a function of the state at each layer, not of one activation."""
        return None

    def tracking(self: SomeController, set_points: Tensor | Sequence[Any] | float) -> SomeController:
        """The same loop with other set-points β*_k at T = 1: [layers], [layers, features], or one number.

        `method.tracking(2 * method.set_points)` doubles λ. Raises ValueError for another shape, and for numbers that
        are not finite.
        """
        values = torch.as_tensor(set_points, dtype=self.set_points.dtype, device=self.set_points.device)
        count, features = self.set_points.shape
        if values.shape not in ((), (count,), (count, features)) or not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"A schedule holds a finite number per layer [{count}], or per layer and feature [{count}, "
                f"{features}]; got {tuple(values.shape)}."
            )
        values = values.unsqueeze(1) if values.ndim == 1 else values
        return replace(self, set_points=values.expand(count, features).clone())  # type: ignore[type-var]

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """For each layer: read `resid_pre`, add to `resid_post` of the same block, on the same tokens.

        Raises ValueError for relative_T and `layer`, which have no meaning here, and for a T that is not finite.
        """
        return self._feedback.edits(T, relative_T=relative_T, layer=layer)

    def portable(self) -> Feedback:
        """The control law and its parameters, as plain tensors."""
        own = self._feedback
        return Feedback(own.law, packed(own.params), *own.init_args()[2:])

    def steer(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> NoReturn:
        """Raises ValueError: the control depends on another site than the one that it is added to."""
        Strength.of(T, relative_T)
        raise self._of_a_model("steer")

    def vector_field(self, a: Activations) -> NoReturn:
        """Raises ValueError, as `steer` does."""
        raise self._of_a_model("vector_field")

    def _of_a_model(self, verb: str) -> ValueError:
        return ValueError(
            f"{type(self).__name__} has no {verb}: it reads the input of each block and adds to its output. "
            "Steer the model: ot.steering(model, method, T), ot.generate or ot.intervene."
        )

    @cached_property
    def _feedback(self) -> Feedback:
        law, params, remembers = self._law()
        origin = self.origin
        return Feedback(law, params, self.layers, origin.d_model, origin.processing, remembers)

    @abstractmethod
    def _law(self) -> tuple[Any, tuple[Any, ...], bool]:
        """For `Feedback`: the law, its parameters, and whether it keeps a state from pass to pass."""


def contrastive_signal(
    model: Any,
    desired: Texts,
    undesired: Texts,
    also: Sequence[tuple[Texts, Texts]],
    layers: Iterable[int] | None,
    blocks: Any,
    **reading: Any,
) -> Signal:
    """v and ‖e‖ of each feature at the input of each of `layers` (None: all), at the last token. v = 0 where e = 0 to
    rounding, for example before the first block for texts with the same last token.

    Raises ValueError as `collect_layers` does, for no layers, for an `also` that is not a list of pairs, and for sides
    with equal means at every layer.
    """
    if not isinstance(also, Sequence) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in also):
        raise ValueError("also is a list of pairs, one for each further feature: also=[(desired2, undesired2)].")
    chosen = sorted(layers_chosen(model, layers, blocks))
    differences, typical_norms, acts = [], [], []
    for sides in ((desired, undesired), *also):
        acts = collect_layers(model, *sides, chosen, site="resid_pre", blocks=blocks, **reading)
        differences.append(
            torch.stack([of_layer.desired.double().mean(0) - of_layer.undesired.double().mean(0) for of_layer in acts])
        )
        norms = [of_layer.origin.typical_norm for of_layer in acts]
        typical_norms.append(torch.tensor(norms, dtype=torch.float64, device="cpu"))
    e = torch.stack(differences, dim=1)
    sizes = e.norm(dim=-1)
    rounding = ROUNDING * torch.stack(typical_norms, dim=1)
    sizes = torch.where(sizes > rounding, sizes, 0.0)
    if not bool((sizes > 0).any(0).all()):
        raise ValueError(
            "The means of desired and undesired texts are the same at every layer: pass other texts for one side."
        )
    directions = torch.where(sizes.unsqueeze(-1) > 0, e / sizes.unsqueeze(-1), 0.0)
    origin = replace(acts[0].origin, layer=None, hook_name=None, typical_norm=None)
    return Signal(directions.float(), sizes.float(), tuple(chosen), origin)


def doubled(loop: SomeController) -> SomeController:
    """The loop with doubled set-points, for the parity table: far from the unsteered states a mistake shows."""
    return loop.tracking(2 * loop.set_points)
