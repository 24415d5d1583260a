"""Directional ablation (arXiv:2406.11717): project a direction, or the plane of several, out of the residual stream.

h(a) = −½‖Uᵀa‖², U [d_model, k] an orthonormal basis of the directions; v = ∇h = −UUᵀa, in one step: a + T v, that is
a − T UUᵀa. T in [0, 1] is the share that is removed: T = 1 is the published projection, which ends at the maximum
h = 0. Projecting twice equals projecting once, the order of directions does not matter, and norms never grow.

Fit: the unit difference of the means of both sides, at the layer and position of the activations. Neither its sign nor
the choice of the desired side matters. The source takes the layer and position whose direction works best on
validation prompts: fit one method for each candidate, and compare them.

The source ablates at every layer and token, after every write to the stream. `everywhere` does that by hooks (with
positions="all"), and `fold` in the weights that write to the stream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, PerActivation
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import mean_difference
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.layers import Layers
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.stream_weights import folded
from odesteer_tl.methods.view import Unit, View
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import affine_pull, euler, flowed
from odesteer_tl.portable.methods import PortableMethod
from odesteer_tl.portable.sites import Site, SiteName
from odesteer_tl.portable.strength import Strength
from odesteer_tl.remote.payloads import packed

Directions = Float[Tensor, "k d_model"]


@dataclass(frozen=True, eq=False)
class Component:
    """h(a) = −½‖Uᵀa‖², `directions` the orthonormal rows of Uᵀ. h is 0 where a has no part along them."""

    directions: Directions

    def value(self, a: Activations) -> PerActivation:
        return -0.5 * (a @ self.directions.T).square().sum(-1)

    def grad(self, a: Activations) -> Activations:
        return -(a @ self.directions.T) @ self.directions


@dataclass(frozen=True, eq=False)
class Ablation(FlowMethod):
    """a − T UUᵀa: T in [0, 1] is the share of the `directions` that is removed, whatever ‖a‖; relative_T is refused.

    `directions` [k, d_model], or [d_model] for one, need neither unit length nor right angles: the method keeps an
    orthonormal basis, its first row along the first direction. Raises ValueError for directions that are not finite, 0,
    or linearly dependent, and for another width than that of the `origin`.
    """

    view: ClassVar[View] = View(
        "directional ablation", "−½‖Uᵀa‖², U a basis of directions", "−UUᵀa", "1", "any", "both sides",
        "arXiv:2406.11717",
        Unit(
            "fractions taken out", "--T 1 takes the direction out, as published; less leaves a part of it.",
            whole=1.0, is_map=True, bounds=(0.0, 1.0),
        ),
    )  # fmt: skip

    directions: Float[Tensor, "*k d_model"]
    layer: int | None = None
    origin: Origin = Origin()  # noqa: RUF009 — it is frozen

    speed: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", orthonormal(self.directions))
        object.__setattr__(self, "origin", origin_at(self.origin, self.layer, self.directions.shape[1]))
        object.__setattr__(self, "layer", self.origin.layer)

    @classmethod
    def fit(cls, acts: ContrastiveActivations) -> "Ablation":
        """Use the difference of means as the direction. Raises ValueError where the means are the same."""
        acts.check("Ablation")
        return cls(mean_difference(acts).weight, acts.layer, acts.origin)

    @classmethod
    def fit_layers(cls, acts: Sequence[ContrastiveActivations]) -> Layers:
        """The method at several layers, each with its own direction, all with one T (see `RepE.fit_layers`).

        Raises ValueError as `fit` does, and for activations without a layer.
        """
        return Layers(tuple(cls.fit(of_layer) for of_layer in acts))

    @property
    def barrier(self) -> Component:
        """h ≤ 0, and 0 where a has no part along the directions."""
        return Component(self.directions)

    @cached_property
    def flow(self) -> Flow:
        with torch.inference_mode(False):  # it is cached, and this call may run in inference mode
            return Flow(self._pull, steps=1)

    def everywhere(self, n_layers: int, sites: Sequence[SiteName] = ("attn_out", "mlp_out")) -> Layers:
        """The same directions, removed from everything that is written to the stream: from the embeddings, where they
        enter block 0, and at `sites` of each of `n_layers` blocks.

            with ot.steering(model, method.everywhere(model.cfg.n_layers), T=1.0, positions="all"): ...

        At T = 1, sites=("resid_mid", "resid_post") gives the same. nnsight models have neither of these pairs; there
        sites=("resid_post",) lets the MLP of each block read what its attention wrote, which `fold` does not. Raises
        ValueError for fewer than one layer, and for unknown sites.
        """
        if n_layers < 1:
            raise ValueError(f"n_layers is how many blocks the model has, at least 1; got {n_layers}.")
        targets = [(0, "resid_pre"), *((layer, site) for layer in range(n_layers) for site in sites)]
        return Layers(tuple(self._at_site(Site(layer, cast(SiteName, site))) for layer, site in targets))

    def fold(self, model: Any, T: float = 1.0) -> Callable[[], None]:
        """Remove the directions from every weight that writes to the stream of `model`. No hook is needed afterwards,
        and every token is ablated. Logits equal those of `everywhere` with positions="all", to 1e-4 in float32.

            undo = method.fold(model)
            ...
            undo()                                                          # the weights as they were, to the bit

        It folds the embeddings of tokens and positions, the output maps of attention and MLP of every block, and their
        biases. An unembedding that is tied to the embedding keeps its numbers: the two are untied, and `undo` ties them
        again. Until then the old weights stay in memory. Undo several folds in reverse order, and before parts of the
        model are resized or replaced, else RuntimeError, and nothing is undone.

        Raises ValueError for a T outside [0, 1]. Raises ValueError and leaves the model unchanged inside a steering
        block, if its stream keeps the directions (a norm follows the matrices, as in Gemma-2), if its weights are
        quantised, not loaded or computed from others (weight norm, pruning), or if they were processed in another way
        than those of the fit.
        """
        Strength(T).check(limits=self._limits)
        return folded(model, self.directions, float(T), self.origin.processing)

    def portable(self) -> PortableMethod:
        """The basis, as plain tensors."""
        return self._as_portable(flowed, packed((self._pull, euler, 1, None)))

    @property
    def _pull(self) -> GradientFunction:
        """v as a plain function and its parameters."""
        count, width = self.directions.shape
        zero = self.directions.new_zeros(width)
        factors = (self.directions.T.contiguous(), -self.directions.new_ones(count))
        return GradientFunction(affine_pull, (factors, zero, zero))

    def _at_site(self, site: Site) -> "Ablation":
        return replace(self, layer=site.layer, origin=replace(self.origin, hook_name=site.hook_name))


def origin_at(origin: Origin, layer: int | None, width: int) -> Origin:
    """The origin with `width` as d_model and, if `layer` is given, the same site of that layer.

    Raises ValueError for an origin of another width.
    """
    if origin.d_model not in (None, width):
        raise ValueError(f"The directions have {width} numbers, but d_model of their origin is {origin.d_model}.")
    if layer is None:
        return replace(origin, d_model=width)
    return replace(origin, d_model=width, layer=layer, hook_name=Site.fitted(origin.hook_name, layer).hook_name)


def orthonormal(directions: Any) -> Directions:
    """Orthonormal rows with the same span. Rows that are orthonormal already are returned unchanged."""
    if (
        not isinstance(directions, Tensor)
        or not directions.is_floating_point()
        or directions.ndim not in (1, 2)
        or not directions.numel()
    ):
        shape = tuple(directions.shape) if isinstance(directions, Tensor) else type(directions).__name__
        raise ValueError(f"directions are a float tensor [d_model] or [k, d_model], got {shape}.")
    rows = (
        directions.detach().to(torch.promote_types(directions.dtype, torch.float32)).reshape(-1, directions.shape[-1])
    )
    rows64 = rows.double()
    identity = torch.eye(len(rows), dtype=rows64.dtype, device=rows64.device)
    if float((rows64 @ rows64.T - identity).abs().max()) <= 1e-6:
        return rows
    norms = rows64.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(rows64).all()) or float(norms.min()) == 0 or len(rows) > rows.shape[1]:
        raise ValueError(f"directions are finite, not 0, and at most d_model: got norms {norms.flatten().tolist()}.")
    basis, upper = torch.linalg.qr((rows64 / norms).T)
    diagonal = upper.diagonal()
    if float(diagonal.abs().min()) <= 1e-5:
        raise ValueError("One of the directions lies in the span of those before it: leave it out.")
    return (basis * diagonal.sign()).T.to(rows.dtype).contiguous()


register(Ablation)
