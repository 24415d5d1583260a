"""Angular steering (arXiv:2510.26243): turn activations in the plane of two directions; the norm is kept.

v(a) = Ja, J = b₂b₁ᵀ − b₁b₂ᵀ, b₁ and b₂ the orthonormal rows of the plane; its exact flow turns the part of a in the
plane by the angle T and leaves the rest: R(S)R(T) = R(S + T). v is not the gradient of any h, as a full turn ends where
it began. With a `target` angle, counted from b₁ towards b₂, h(a) = cos(φ(a) − target), φ the angle of a in the plane:
v turns a at unit angular speed up h, and stops at the top. With T ≥ π every activation arrives there, which is the
source's form: its part in the plane becomes ‖Pa‖(cos(target) b₁ + sin(target) b₂). `adaptive` turns only activations
that start with a positive part along b₁, as the source's adaptive form does.

Fit: b₁ is the unit difference of means, from undesired to desired; b₂ is the first principal component of both sides
together after b₁ is removed, with its largest entry positive. The source takes b₂ from the directions of all layers:
see `fit_layers`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Direction, PerActivation, Samples, Time
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import Barrier, mean_difference, with_grad
from odesteer_tl.methods.ablation import origin_at, orthonormal
from odesteer_tl.methods.layers import Layers
from odesteer_tl.methods.pointwise import PointwiseMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.repe import main_direction
from odesteer_tl.methods.view import Unit, View
from odesteer_tl.portable.integrate import norm
from odesteer_tl.portable.methods import PortableMethod
from odesteer_tl.portable.networks import turned_in_plane
from odesteer_tl.remote.payloads import packed

Plane = Float[Tensor, "2 d_model"]


@dataclass(frozen=True, eq=False)
class Bearing:
    """h(a) = cos(φ − target), φ the angle of a in the plane, from its first row; 0 if a has no part in the plane."""

    plane: Plane
    target: float

    def value(self, a: Activations) -> PerActivation:
        goal = math.cos(self.target) * self.plane[0] + math.sin(self.target) * self.plane[1]
        return a @ goal / norm(a @ self.plane.T).squeeze(-1).clamp_min(torch.finfo(a.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Angular(PointwiseMethod):
    """a turned by T radians in the `plane` of two rows, from the first towards the second; relative_T is refused.

    With a `target` (radians from the first row) a turns towards that angle the shorter way and stops there; a negative
    T turns it away. `adaptive` turns only activations with a positive part along the first row. The rows of `plane`
    [2, d_model] need neither unit length nor a right angle: the method keeps an orthonormal basis, its first row along
    the first. Raises ValueError for rows that are not finite or linearly dependent, a `target` that is not finite, and
    another width than the `origin`'s.
    """

    view: ClassVar[View] = View(
        "angular steering", "none", "b₂(b₁ᵀa) − b₁(b₂ᵀa)", "1, along an arc", "‖a‖", "both sides", "arXiv:2510.26243",
        Unit(
            "radians", "--T 0.5 turns by half a radian; look from 0.2 to 3.1, half a turn.",
            whole=math.pi / 2, is_map=True, bounds=(-math.inf, math.inf),
        ),
    )  # fmt: skip

    plane: Plane
    layer: int | None = None
    target: float | None = None
    adaptive: bool = False
    origin: Origin = Origin()  # noqa: RUF009 — it is frozen

    speed: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "plane", orthonormal(self.plane))
        if len(self.plane) != 2:
            raise ValueError(f"A plane has two directions, [2, d_model]; got {tuple(self.plane.shape)}.")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"target is an angle in radians, from the first row of the plane; got {self.target}.")
        object.__setattr__(self, "origin", origin_at(self.origin, self.layer, self.plane.shape[1]))
        object.__setattr__(self, "layer", self.origin.layer)

    @classmethod
    def fit(cls, acts: ContrastiveActivations, *, target: float | None = None, adaptive: bool = False) -> "Angular":
        """Compute b₁ and b₂ in float64, as the head of this file says.

        Raises ValueError for fewer than 2 activations on a side, for equal means, and where activations vary along b₁
        alone.
        """
        acts.check("Angular", 2)
        b1 = _unit_difference(acts)
        rows = torch.cat([acts.desired, acts.undesired]).double()
        return cls(torch.stack([b1, _second_direction(rows, b1)]).float(), acts.layer, target, adaptive, acts.origin)

    @classmethod
    def fit_layers(
        cls, acts: Sequence[ContrastiveActivations], *, target: float | None = None, adaptive: bool = False
    ) -> Layers:
        """One plane for several layers, as in the source. Of the unit differences of means of all layers, b₁ is the one
        with the largest mean cosine to the others; b₂ is their first principal component after b₁ is removed.

            acts = ot.collect_layers(model, desired, undesired, range(n_layers))
            with ot.steering(model, ot.Angular.fit_layers(acts, target=0.0), T=3.2): ...

        Raises ValueError as `fit` does, for fewer than two layers, and for activations without a layer.
        """
        if len(acts) < 2:
            raise ValueError(
                f"Angular.fit_layers needs the activations of at least two layers, got {len(acts)}: use Angular.fit."
            )
        for of_layer in acts:
            of_layer.check("Angular", 2)
        directions = torch.stack([_unit_difference(of_layer) for of_layer in acts])
        b1 = directions[int((directions @ directions.T).mean(1).argmax())]
        plane = torch.stack([b1, _second_direction(directions, b1)]).float()
        return Layers(tuple(cls(plane, of_layer.layer, target, adaptive, of_layer.origin) for of_layer in acts))

    @property
    def barrier(self) -> Barrier | None:
        """cos(φ − target), or None without a target: a turn alone has no h."""
        return None if self.target is None else with_grad(Bearing(self.plane, self.target))

    def portable(self) -> PortableMethod:
        """The plane, as plain tensors."""
        return self._as_portable(turned_in_plane, packed((self.plane, self.target, self.adaptive)))

    def _move(self, x: Activations, T: Time) -> Activations:
        return turned_in_plane(x, T, self.plane, self.target, self.adaptive)

    def _velocity(self, x: Activations) -> Activations:
        y = x @ self.plane.T
        v = torch.stack([-y[..., 1], y[..., 0]], dim=-1) @ self.plane
        if self.target is not None:
            v = torch.sign(torch.sin(self.target - torch.atan2(y[..., 1:], y[..., :1]))) * v
        return torch.where(y[..., :1] > 0, v, torch.zeros_like(v)) if self.adaptive else v


def _unit_difference(acts: ContrastiveActivations) -> Direction:
    difference = mean_difference(acts).weight.double()
    return difference / difference.norm()


def _second_direction(rows: Samples, b1: Direction) -> Direction:
    """The first principal component of `rows` after b₁ is removed, with its largest entry positive."""
    rest = rows - rows.mean(0)
    rest = rest - (rest @ b1).unsqueeze(1) * b1
    if float(rest.norm()) <= 1e-6 * float(rows.norm()):
        raise ValueError(
            "The activations vary along one direction only, and a plane needs two: pass more or other texts."
        )
    b2 = main_direction(rest)
    return b2 * b2[b2.abs().argmax()].sign()


register(Angular)
