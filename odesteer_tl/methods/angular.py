"""Angular steering (arXiv:2510.26243): turn activations in the plane of two directions; the norm is kept.

v(a) = Ja, J = b₂b₁ᵀ − b₁b₂ᵀ, b₁ and b₂ the orthonormal rows of the plane; its exact flow turns the part of a in the
plane by the angle T and leaves the rest: R(S)R(T) = R(S + T). No h has v as its gradient: a turn comes back to where it
began. With a `target` angle, counted from b₁ towards b₂, there is one, h(a) = cos(φ(a) − target), φ the angle of a in
the plane: v turns a at unit angular speed up h, and stops at the top. T ≥ π gets every activation there, which is the
source's form: its part in the plane becomes ‖Pa‖(cos(target) b₁ + sin(target) b₂). `adaptive` turns those alone that
have a positive part along b₁, as the source's adaptive form does; whether, is decided where they start.

Fit: b₁ is the unit difference of means, from undesired to desired; b₂ the first principal component of both sides
together when b₁ is taken out, its largest entry positive. One layer has no more to say: the source takes b₂ from the
directions of all layers, which is `fit_layers`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Direction, PerActivation, Samples, Time
from odesteer_tl.data.activations import ContrastiveActivations, Origin
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
from odesteer_tl.remote.packing import packed

Plane = Float[Tensor, "2 d_model"]


@dataclass(frozen=True, eq=False)
class Bearing:
    """h(a) = cos(φ − target), φ the angle of a in the plane, from its first row; 0 where a has no part in the plane."""

    plane: Plane
    target: float

    def value(self, a: Activations) -> PerActivation:
        goal = math.cos(self.target) * self.plane[0] + math.sin(self.target) * self.plane[1]
        return a @ goal / norm(a @ self.plane.T).squeeze(-1).clamp_min(torch.finfo(a.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Angular(PointwiseMethod):
    """a turned by T radians in the `plane` of two rows, from the first towards the second; relative_T is refused.

    `target`: turned towards that angle, in radians from the first row, the shorter way and no further, away from it
    for a negative T. `adaptive`: only those with a positive part along the first row. The rows of `plane` [2, d_model]
    need neither length 1 nor a right angle: kept is an orthonormal basis, its first row along the first. Raises
    ValueError for rows that are not finite or not independent, a `target` that is not finite, and another width than
    the `origin`'s.
    """

    view: ClassVar[View] = View(
        "angular steering", "none", "b₂(b₁ᵀa) − b₁(b₂ᵀa)", "1, along an arc", "‖a‖", "both sides", "arXiv:2510.26243",
        Unit(
            "radians", "--T 0.5 turns by half a radian; look from 0.2 to 3.1, half a turn.",
            whole=math.pi / 2, tried=(math.pi / 8, math.pi / 4, math.pi / 2), bounds=(-math.inf, math.inf),
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
        """Take b₁ and b₂ as the head of this file says, in float64.

        Raises ValueError for fewer than 2 activations on a side, where the means are the same, and where activations
        vary along b₁ alone.
        """
        acts.check("Angular", 2)
        b1 = _unit_difference(acts)
        rows = torch.cat([acts.desired, acts.undesired]).double()
        return cls(torch.stack([b1, _second(rows, b1)]).float(), acts.layer, target, adaptive, acts.origin)

    @classmethod
    def fit_layers(
        cls, acts: Sequence[ContrastiveActivations], *, target: float | None = None, adaptive: bool = False
    ) -> Layers:
        """One plane for several layers, as the source: of the unit differences of means of all layers, b₁ is the one
        with the largest mean cosine to the others, and b₂ their first principal component when b₁ is taken out.

            acts = ot.collect_layers(model, desired, undesired, range(n_layers))
            with ot.steering(model, ot.Angular.fit_layers(acts, target=0.0), T=3.2): ...

        Raises ValueError as `fit` does, for fewer than two layers, and for activations that do not know theirs.
        """
        if len(acts) < 2:
            raise ValueError(f"A plane of the directions of several layers needs two or more, got {len(acts)}.")
        for each in acts:
            each.check("Angular", 2)
        found = torch.stack([_unit_difference(each) for each in acts])
        b1 = found[int((found @ found.T).mean(1).argmax())]
        plane = torch.stack([b1, _second(found, b1)]).float()
        return Layers(tuple(cls(plane, each.layer, target, adaptive, each.origin) for each in acts))

    @property
    def barrier(self) -> Barrier | None:
        """cos(φ − target); None without a target, as a turn alone has no h."""
        return None if self.target is None else with_grad(Bearing(self.plane, self.target))

    def portable(self) -> PortableMethod:
        """The plane in plain numbers."""
        return self._as_travelling(turned_in_plane, packed((self.plane, self.target, self.adaptive)))

    def _move(self, x: Activations, T: Time) -> Activations:
        return turned_in_plane(x, T, self.plane, self.target, self.adaptive)

    def _velocity(self, x: Activations) -> Activations:
        y = x @ self.plane.T
        v = torch.stack([-y[..., 1], y[..., 0]], dim=-1) @ self.plane
        if self.target is not None:
            v = torch.sign(torch.sin(self.target - torch.atan2(y[..., 1:], y[..., :1]))) * v
        return torch.where(y[..., :1] > 0, v, torch.zeros_like(v)) if self.adaptive else v


def _unit_difference(acts: ContrastiveActivations) -> Direction:
    found = mean_difference(acts).weight.double()
    return found / found.norm()


def _second(rows: Samples, b1: Direction) -> Direction:
    """The first principal component of `rows` when b₁ is taken out, its largest entry positive."""
    rest = rows - rows.mean(0)
    rest = rest - (rest @ b1).unsqueeze(1) * b1
    if float(rest.norm()) <= 1e-6 * float(rows.norm()):
        raise ValueError("What varies lies along one direction, and a plane needs two: pass more or other texts.")
    b2 = main_direction(rest)
    return b2 * b2[b2.abs().argmax()].sign()


register(Angular)
