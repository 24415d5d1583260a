"""Flow: integrates a field for a time T, in the coordinates where that is cheapest.

If h depends on a only through m directions and ‖a‖, a trajectory stays in their span plus the direction of the rest of
a: with U an orthonormal basis of the span, a(t) = U y(t) + σ(t)(a − UUᵀa). The ODE is then solved for the m + 1 numbers
(y, p), p = σ‖a − UUᵀa‖. Any number of steps costs two thin matrix products. The result is the same, to rounding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Time
from odesteer_tl.flows.barriers import Barrier, Subspace
from odesteer_tl.flows.fields import Constant, Field, Gradient, UnitGradient
from odesteer_tl.flows.solvers import Euler, Solver
from odesteer_tl.portable.integrate import enter, euler, flowed, leave, midpoint, path, per_activation, rk4
from odesteer_tl.portable.values import euler_up_to
from odesteer_tl.remote.payloads import packed, tensor_bytes

MOST_STEPS = 100_000
"""More steps are refused as a mistake: the paper takes ten, and each step evaluates the field."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """a(t) [steps + 1, *batch, d_model] and h [steps + 1, *batch] at equal fractions of T; h is None without a barrier.

    `chatters` [*batch]: h falls by more than rounding in some step (rises, where `forward` is False as T is negative),
    so T/steps is too long for this activation: it has passed an extremum of h, and more time only adds norm.
    """

    activations: Float[Tensor, "times *batch d_model"]
    h: Float[Tensor, "times *batch"] | None
    forward: Bool[Tensor, "*#batch"] | bool = True

    @property
    def chatters(self) -> Bool[Tensor, "*batch"]:
        if self.h is None:
            return torch.zeros(self.activations.shape[1:-1], dtype=torch.bool, device=self.activations.device)
        rounding = 16 * torch.finfo(self.h.dtype).eps * (1 + self.h.abs().amax(0))
        rise = self.h.diff(dim=0)
        return (torch.where(torch.as_tensor(self.forward, device=rise.device), rise, -rise) < -rounding).any(0)

    @property
    def reaches(self) -> Bool[Tensor, "*batch"]:
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
        for name, part in (("field", self.field), ("solver", self.solver)):
            if isinstance(part, type):
                raise ValueError(
                    f"The {name} of a flow is an object; {part.__name__} is a class: pass {part.__name__}(…)."
                )
        if not callable(self.field):
            raise ValueError(
                f"A field is a function v(a), such as ot.UnitGradient(barrier); got a {type(self.field).__name__}."
            )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}. For no steering use T=0.")
        if self.steps > MOST_STEPS:
            raise ValueError(f"steps must be at most {MOST_STEPS:,}, got {self.steps}.")
        if self._stops and self.solver.step is not euler:
            raise ValueError(
                f'until needs solver="euler", which ends a step where h is reached; {type(self.solver).__name__} looks '
                "beyond it and may not move at all."
            )

    def __call__(self, a: Activations, T: Time) -> Activations:
        if self._reduced is None:
            return flowed(a, T, self.field, self._step, self.steps)
        return flowed(a, T, self._reduced.inner, self._step, self.steps, self._reduced.basis, self._rows)

    def path(self, a: Activations, T: Time) -> Iterator[Activations]:
        """a(t) at every step, the start included."""
        if self._reduced is None:
            yield from path(self.field, a, T, self._step, self.steps)
            return
        start = enter(a, self._reduced.basis)
        for now in path(self._reduced.inner, start, T, self._step, self.steps):
            yield leave(a, start, now, self._rows)

    def trajectory(self, a: Activations, T: Time, barrier: Barrier | None) -> Trajectory:
        """a(t) and h(a(t)) at every step."""
        points = list(self.path(a, T))
        h = None if barrier is None else torch.stack([barrier.value(point) for point in points])
        forward = torch.as_tensor(per_activation(T, a) >= 0, device=a.device)
        return Trajectory(torch.stack(points), h, forward.squeeze(-1) if forward.ndim else forward)

    def parts(self) -> tuple[Any, ...]:
        """The arguments of `integrate.flowed` after a and T, packed to be sent: gradient, step, steps, basis or None.

        The form with fewer bytes is sent, direct or reduced; if they differ by less than a tenth, the reduced one,
        which is faster. Raises ValueError for a field or a solver that is not of this package.
        """
        if self.solver.step not in (euler, midpoint, rk4):
            raise ValueError(
                f"The solver {type(self.solver).__name__} cannot be sent to a remote server; "
                'use "euler", "midpoint" or "rk4", or steer a model on this machine.'
            )
        if not isinstance(self.field, (Gradient, UnitGradient, Constant)):
            raise ValueError(
                f"The field {type(self.field).__name__} cannot be sent to a remote server; use GradientFlow with a "
                "barrier of your own, or steer a model on this machine."
            )
        direct = packed((self.field.gradient_function, self._step, self.steps, None))
        subspace = self._reduced or self._subspace()
        if subspace is None:
            return direct
        reduced = packed((subspace.inner.gradient_function, self._step, self.steps, subspace.basis))
        return reduced if tensor_bytes(reduced) <= 1.1 * tensor_bytes(direct) else direct

    @property
    def _step(self) -> Callable[..., Tensor]:
        """Of the solver; an Euler step up to a level of h ends there."""
        return euler_up_to if self._stops else self.solver.step

    @property
    def _stops(self) -> bool:
        return isinstance(self.field, (Gradient, UnitGradient)) and self.field.until is not None

    def _subspace(self) -> Subspace[Any] | None:
        reduced_of = getattr(self.field, "reduced", None)
        with torch.inference_mode(False):  # it is cached, and this call may run in inference mode
            subspace: Any = reduced_of() if callable(reduced_of) and self.coordinates != "direct" else None
        return subspace

    @cached_property
    def _reduced(self) -> Subspace[Any] | None:
        subspace = self._subspace()
        if self.coordinates == "reduced" and subspace is None:
            raise ValueError("This field has no reduced form: pass coordinates='direct' or 'auto'.")
        return subspace if subspace is None or self.coordinates == "reduced" or self._is_cheaper(subspace) else None

    @cached_property
    def _rows(self) -> Tensor:
        """The basis transposed and contiguous, for `integrate.leave`."""
        assert self._reduced is not None
        with torch.inference_mode(False):
            return self._reduced.basis.T.contiguous()

    def _is_cheaper(self, subspace: Subspace[Field]) -> bool:
        """Whether reduced coordinates pay: entering and leaving them costs about one direct step with m landmarks."""
        d_model, m = subspace.basis.shape
        return self.steps > 1 and (subspace.elementwise or m < d_model / 2)
