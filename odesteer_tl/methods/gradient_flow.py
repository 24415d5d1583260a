"""GradientFlow: walks uphill on any barrier, also on the user's own.

h is the given barrier; v = ∇h/‖∇h‖, or ∇h with `unit_speed=False`. Autograd supplies ∇h where the barrier has only
`value`: for example a value network, the logit of a classifier, or a reward model. An activation with h(a) ≥ `until` is
left where it is.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier, with_grad
from odesteer_tl.flows.features import Polynomial
from odesteer_tl.flows.fields import Gradient, UnitGradient, checked_level
from odesteer_tl.flows.flow import Flow
from odesteer_tl.flows.solvers import SolverName, solver_named
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import View
from odesteer_tl.portable.sites import Site


@dataclass(frozen=True, eq=False)
class GradientFlow(FlowMethod):
    """ȧ = ∇h/‖∇h‖ for any `barrier`: an object with `value(a)` [*batch] and optionally `grad(a)` [*batch, d_model].

    `until` as in `ODESteer`. Raises ValueError for a barrier without `value`, steps < 1, an unknown solver, an `until`
    that is not a finite number, and one with another solver than Euler.
    """

    view: ClassVar[View] = View(
        "any barrier", "yours", "∇h/‖∇h‖, or ∇h", "10, or yours",
        "any", "a barrier", "arXiv:2602.17560",
    )  # fmt: skip

    barrier: Any
    steps: int = 10
    solver: SolverName = "euler"
    layer: int | None = None
    unit_speed: bool = True
    origin: Origin = Origin()  # noqa: RUF009 — it is frozen
    until: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "barrier", with_grad(self.barrier))
        if self.layer is None:
            object.__setattr__(self, "layer", self.origin.layer)
        else:
            site = Site.fitted(self.origin.hook_name, self.layer)
            object.__setattr__(self, "origin", replace(self.origin, layer=self.layer, hook_name=site.hook_name))
        if self.until is not None:
            object.__setattr__(self, "until", checked_level(self.until))
        _ = self.flow  # so a wrong solver or number of steps fails here, not during a generation

    @cached_property
    def flow(self) -> Flow:
        field = (UnitGradient if self.unit_speed else Gradient)(self.barrier, self.until)
        return Flow(field, solver_named(self.solver), self.steps)


def _curved(acts: ContrastiveActivations) -> GradientFlow:
    """A flow up a log ratio whose quadratic part is larger than the linear one."""
    barrier = LogRatioBarrier.fit(acts, Polynomial(degree=2, gamma=2.0, coef0=0.5))
    return GradientFlow(barrier, solver="rk4", layer=acts.layer)


def _cubic(acts: ContrastiveActivations) -> GradientFlow:
    barrier = LogRatioBarrier.fit(acts, Polynomial(degree=3))
    return GradientFlow(barrier, steps=4, solver="rk4", origin=acts.origin)


register(GradientFlow, example=_curved, parity={"GradientFlow, degree 3, RK4": lambda at: _cubic(at.acts())})
