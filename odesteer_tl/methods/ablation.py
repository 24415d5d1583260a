"""Directional ablation (arXiv:2406.11717): project a direction, or the plane of several, out of the residual stream.

h(a) = −½‖Uᵀa‖², U [d_model, k] an orthonormal basis of the directions; v = ∇h = −UUᵀa, in one step: a + T v, that is
a − T UUᵀa. T in [0, 1] is how much is taken out: 1 is the published projection, which ends where h = 0 is largest.
Projecting twice is projecting once, the order of directions does not matter, and norms only fall.

Fit: the unit difference of means of both sides, at the layer and position of the activations. Its sign does not matter,
nor does which side is called desired. The source takes the layer and position whose direction does best on validation
prompts: fit one for each that you consider, and compare them.

The source ablates at every layer and token, wherever something was written to the stream: `everywhere` is that as
hooks (with positions="all"), and `fold` the same in the weights that write to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, PerActivation
from odesteer_tl.data.activations import ContrastiveActivations, Origin
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
from odesteer_tl.remote.packing import packed

Directions = Float[Tensor, "k d_model"]


@dataclass(frozen=True, eq=False)
class Component:
    """h(a) = −½‖Uᵀa‖² of orthonormal rows `directions` Uᵀ: 0 where nothing of them is left in a."""

    directions: Directions

    def value(self, a: Activations) -> PerActivation:
        return -0.5 * (a @ self.directions.T).square().sum(-1)

    def grad(self, a: Activations) -> Activations:
        return -(a @ self.directions.T) @ self.directions


@dataclass(frozen=True, eq=False)
class Ablation(FlowMethod):
    """a − T UUᵀa: T in [0, 1] counts how much of the `directions` is taken out, whatever ‖a‖; relative_T is refused.

    `directions` [k, d_model], or [d_model] for one, need neither length 1 nor right angles: kept is an orthonormal
    basis, its first row along the first of them. Raises ValueError for directions that are not finite, 0, or not
    independent, and for another width than that of the `origin`.
    """

    view: ClassVar[View] = View(
        "directional ablation", "−½‖Uᵀa‖², U a basis of directions", "−UUᵀa", "1", "any", "both sides",
        "arXiv:2406.11717",
        Unit(
            "fractions taken out", "--T 1 takes the direction out, as published; less leaves a part of it.",
            whole=1.0, tried=(0.25, 0.5, 1.0), bounds=(0.0, 1.0),
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
        """Take the difference of means for the direction. Raises ValueError where the means are the same."""
        acts.check("Ablation")
        return cls(mean_difference(acts).weight, acts.layer, acts.origin)

    @classmethod
    def fit_layers(cls, acts: Sequence[ContrastiveActivations]) -> Layers:
        """The method at several layers, each with its own direction, all with one T (see `RepE.fit_layers`).

        Raises ValueError as `fit` does, and for activations that do not know their layer.
        """
        return Layers(tuple(cls.fit(each) for each in acts))

    @property
    def barrier(self) -> Component:
        """h, 0 at most, and 0 where nothing is left to take out."""
        return Component(self.directions)

    @cached_property
    def flow(self) -> Flow:
        with torch.inference_mode(False):  # kept beyond this call, which may run in inference mode
            return Flow(self._pull, steps=1)

    def everywhere(self, n_layers: int, sites: Sequence[SiteName] = ("attn_out", "mlp_out")) -> Layers:
        """The same directions taken out of all that is written to the stream: of the embeddings, where they enter block
        0, and at `sites` of each of `n_layers` blocks.

            with ot.steering(model, method.everywhere(model.cfg.n_layers), T=1.0, positions="all"): ...

        With T = 1 sites=("resid_mid", "resid_post") is the same. In an nnsight model, which has neither of these pairs,
        sites=("resid_post",) leaves to the MLP of each block what its attention wrote; `fold` does not. Raises
        ValueError for fewer than one layer, and for sites that there are not.
        """
        if n_layers < 1:
            raise ValueError(f"n_layers is how many blocks the model has, at least 1; got {n_layers}.")
        places = [(0, "resid_pre"), *((layer, site) for layer in range(n_layers) for site in sites)]
        return Layers(tuple(self._at_site(Site(layer, cast(SiteName, site))) for layer, site in places))

    def fold(self, model: Any, T: float = 1.0) -> Callable[[], None]:
        """Take the directions out of every weight that writes to the stream of `model`: no hook is needed afterwards,
        and every token is ablated. Logits are those of `everywhere` with positions="all", to 1e-4 in float32.

            undo = method.fold(model)
            ...
            undo()                                                          # the weights as they were, to the bit

        Folded are the embeddings of tokens and positions, the output maps of attention and MLP of every block, and
        their biases. An unembedding that is tied to the embedding keeps its numbers: the two are untied, and tied again
        by `undo`; until then the old weights are kept in memory. Folds are undone in reverse order, and before parts of
        the model are replaced (as resize_token_embeddings does), else RuntimeError, and nothing is undone.

        Raises ValueError for a T outside [0, 1], inside a steering block, and, the model as it was, for one whose
        stream keeps the directions (a norm stands behind the matrices, as in Gemma-2), whose weights are quantised, not
        loaded or computed of others (weight norm, pruning), or were processed otherwise than those of the fit.
        """
        Strength(T).check(limits=self._limits)
        return folded(model, self.directions, float(T), self.origin.processing)

    def portable(self) -> PortableMethod:
        """The basis in plain numbers."""
        return self._as_travelling(flowed, packed((self._pull, euler, 1, None)))

    @property
    def _pull(self) -> GradientFunction:
        """v in plain numbers."""
        count, width = self.directions.shape
        nowhere = self.directions.new_zeros(width)
        stretch = (self.directions.T.contiguous(), -self.directions.new_ones(count))
        return GradientFunction(affine_pull, (stretch, nowhere, nowhere))

    def _at_site(self, site: Site) -> "Ablation":
        return replace(self, layer=site.layer, origin=replace(self.origin, hook_name=site.hook_name))


def origin_at(origin: Origin, layer: int | None, width: int) -> Origin:
    """The origin of directions of that width which are to act at `layer`, where that is given, at the same site.

    Raises ValueError for an origin of another width."""
    if origin.d_model not in (None, width):
        raise ValueError(f"The directions have {width} numbers, their origin d_model {origin.d_model}.")
    if layer is None:
        return replace(origin, d_model=width)
    return replace(origin, d_model=width, layer=layer, hook_name=Site.fitted(origin.hook_name, layer).hook_name)


def orthonormal(given: Any) -> Directions:
    """Orthonormal rows that span what is given; rows that are orthonormal already are left as they are, to the bit."""
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.ndim not in (1, 2) or not given.numel():
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"directions are a float tensor [d_model] or [k, d_model], got {shape}.")
    rows = given.detach().to(torch.promote_types(given.dtype, torch.float32)).reshape(-1, given.shape[-1])
    exact = rows.double()
    if float((exact @ exact.T - torch.eye(len(rows)).to(exact)).abs().max()) <= 1e-6:
        return rows
    sizes = exact.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(exact).all()) or float(sizes.min()) == 0 or len(rows) > rows.shape[1]:
        raise ValueError(f"directions are finite, not 0, and at most d_model: got norms {sizes.flatten().tolist()}.")
    basis, upper = torch.linalg.qr((exact / sizes).T)
    corners = upper.diagonal()
    if float(corners.abs().min()) <= 1e-5:
        raise ValueError("One of the directions lies in the span of those before it: leave it out.")
    return (basis * corners.sign()).T.to(rows.dtype).contiguous()


register(Ablation)
