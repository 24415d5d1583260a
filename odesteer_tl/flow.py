"""Flow: a field followed for a time, in the coordinates where that is cheapest.

If h depends on a only through m directions and ‖a‖, a trajectory stays in their span plus the direction of the rest of
a: with U an orthonormal basis of the span, a(t) = U y(t) + σ(t)(a − UUᵀa). So the ODE is solved for the m + 1 numbers
(y, p), p = σ‖a − UUᵀa‖, and two thin matrix products pay for any number of steps. The result is the same, to rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float

from odesteer_tl.barriers import Barrier, Subspace
from odesteer_tl.features import norm
from odesteer_tl.fields import Field
from odesteer_tl.shapes import Activations, Basis, Time, per_activation
from odesteer_tl.solvers import Euler, Solver, integrate, path


@dataclass(frozen=True, eq=False)
class Trajectory:
    """a(t) [steps + 1, *batch, d_model] and h [steps + 1, *batch] at equal fractions of T; h is None without a barrier.

    `chatters` [*batch]: h falls by more than rounding in some step (rises, where `forward` is False as T is negative),
    so T/steps is too long for this activation: it has passed an extremum of h, and further time only adds norm.
    """

    activations: Float[torch.Tensor, "times *batch d_model"]
    h: Float[torch.Tensor, "times *batch"] | None
    forward: Bool[torch.Tensor, "*#batch"] | bool = True

    @property
    def chatters(self) -> Bool[torch.Tensor, "*batch"]:
        if self.h is None:
            return torch.zeros(self.activations.shape[1:-1], dtype=torch.bool, device=self.activations.device)
        rounding = 16 * torch.finfo(self.h.dtype).eps * (1 + self.h.abs().amax(0))
        rise = self.h.diff(dim=0)
        return (torch.where(torch.as_tensor(self.forward, device=rise.device), rise, -rise) < -rounding).any(0)

    @property
    def reaches(self) -> Bool[torch.Tensor, "*batch"]:
        """h ≥ 0 at the end: the activation lies in the desired region. All False without a barrier."""
        return torch.zeros_like(self.chatters) if self.h is None else self.h[-1] >= 0


@dataclass(frozen=True, eq=False)
class Flow:
    """The map a(0) → a(T) of ȧ = field(a).

    `coordinates`: "direct" integrates in d_model coordinates, "reduced" in m + 1 (ValueError where the field has no
    such form), "auto" takes the cheaper.
    """

    field: Field
    solver: Solver = Euler()  # noqa: RUF009 — it has no state
    steps: int = 10
    coordinates: Literal["auto", "direct", "reduced"] = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}. For no steering use T=0.")

    def __call__(self, a: Activations, T: Time) -> Activations:
        if self._reduced is None:
            return integrate(self.field, a, T, steps=self.steps, solver=self.solver)
        basis, field = self._reduced.basis, self._reduced.inner
        start = _enter(a, basis)
        return _leave(a, start, integrate(field, start, T, steps=self.steps, solver=self.solver), basis)

    def path(self, a: Activations, T: Time) -> Iterator[Activations]:
        """a(t) at every step, the start included."""
        if self._reduced is None:
            yield from path(self.field, a, T, steps=self.steps, solver=self.solver)
            return
        basis, field = self._reduced.basis, self._reduced.inner
        start = _enter(a, basis)
        for now in path(field, start, T, steps=self.steps, solver=self.solver):
            yield _leave(a, start, now, basis)

    def trajectory(self, a: Activations, T: Time, barrier: Barrier | None) -> Trajectory:
        """a(t) and h(a(t)) at every step."""
        points = list(self.path(a, T))
        h = None if barrier is None else torch.stack([barrier.value(point) for point in points])
        forward = torch.as_tensor(per_activation(T, a) >= 0, device=a.device)
        return Trajectory(torch.stack(points), h, forward.squeeze(-1) if forward.ndim else forward)

    @cached_property
    def _reduced(self) -> Subspace[Field] | None:
        reduce = getattr(self.field, "reduced", None)
        with torch.inference_mode(False):  # kept beyond this call, which may run in inference mode
            found: Any = reduce() if callable(reduce) and self.coordinates != "direct" else None
        if self.coordinates == "reduced" and found is None:
            raise ValueError("This field has no reduced form; use coordinates='direct'.")
        return found if found is None or self.coordinates == "reduced" or self._pays(found) else None

    def _pays(self, found: Subspace[Field]) -> bool:
        """The way there and back costs what one direct step with m landmarks costs."""
        d_model, m = found.basis.shape
        return self.steps > 1 and (found.elementwise or m < d_model / 2)


def _enter(a: Activations, basis: Basis) -> Float[torch.Tensor, "*batch m_plus_1"]:
    """(y, p) of an activation. p is kept above rounding, so that σ is known even where a lies in the span."""
    y = a @ basis
    scale = norm(a).clamp_min(torch.finfo(a.dtype).tiny)
    inside = norm(y) / scale
    floor = torch.finfo(a.dtype).eps ** 2
    p = scale * ((1 - inside) * (1 + inside)).clamp_min(floor).sqrt()
    return torch.cat([y, p], dim=-1)


def _leave(
    a: Activations,
    start: Float[torch.Tensor, "*batch m_plus_1"],
    end: Float[torch.Tensor, "*batch m_plus_1"],
    basis: Basis,
) -> Activations:
    growth = end[..., -1:] / start[..., -1:]
    return growth * a + (end[..., :-1] - growth * start[..., :-1]) @ basis.T
