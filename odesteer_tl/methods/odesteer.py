"""ODESteer (arXiv:2602.17560): walk uphill on a nonlinear log density ratio, in several small steps.

h(a) = log p₊(a)/p₋(a) ≈ wᵀφ(a) + b, φ polynomial features of a/‖a‖; v(a) = ∇h/‖∇h‖; a(T) by 10 Euler steps.
As h depends on the direction of a alone, v is tangent to the sphere: the exact flow is a curve of length T on the
sphere, an angle of at most T/‖a‖, and keeps the norm; Euler gives ‖a(T)‖² = ‖a(0)‖² + T²/steps. StepODESteer is the
paper's ablation with a single step. `until` ends the walk of each activation where h is high enough, which the paper
does not do.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Polynomial, PolynomialSketch, RandomFourier, Recipe
from odesteer_tl.flows.fields import UnitGradient, checked_level
from odesteer_tl.flows.flow import Flow
from odesteer_tl.flows.solvers import SolverName, solver_named
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import View


@dataclass(frozen=True, eq=False)
class ODESteer(FlowMethod):
    """ȧ = ∇h/‖∇h‖ with h = log p₊/p₋ on nonlinear features; with `until` only where h(a) < until.

    An activation stops where h = until, to first order in the last step: a long one goes too far where h curves up.
    One that is there from the start is left as it is, also for T < 0, and T is the longest way. An `until` that h never
    reaches stops nothing. Raises ValueError for an `until` that is not a finite number, or has another solver than
    Euler, for a wrong solver and for steps < 1.
    """

    view: ClassVar[View] = View(
        "ODESteer", "wᵀφ(a/‖a‖) + b + log(n₋/n₊)", "∇h/‖∇h‖", "10",
        "√(‖a‖² + T²/steps)", "both sides", "arXiv:2602.17560",
    )  # fmt: skip

    barrier: LogRatioBarrier
    origin: Origin
    steps: int = 10
    solver: SolverName = "euler"
    until: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None:
            object.__setattr__(self, "until", checked_level(self.until))
        _ = self.flow  # so a wrong solver or number of steps fails here, not during a generation

    @classmethod
    def fit(
        cls,
        acts: ContrastiveActivations,
        *,
        features: Recipe | None = None,
        C: float = 1.0,
        tol: float = 1e-5,
        steps: int = 10,
        solver: SolverName = "euler",
        until: float | Literal["desired"] | None = None,
    ) -> "ODESteer":
        """Fit h by logistic regression. The default `features` are `Polynomial(degree=2, gamma=0.1, coef0=1.0)`;
        `PolynomialSketch(n_components=8000)` with `tol=1e-4` is the paper's estimator. `until`: the h at which an
        activation stops, in nats; "desired" is the median of h over the desired activations."""
        acts.check("ODESteer", 2)
        barrier = LogRatioBarrier.fit(acts, Polynomial() if features is None else features, C=C, tol=tol)
        level = float(barrier.value(acts.desired.float()).median()) if until == "desired" else until
        return cls(barrier, acts.origin, steps, solver, level)

    @cached_property
    def flow(self) -> Flow:
        return Flow(UnitGradient(self.barrier, self.until), solver_named(self.solver), self.steps)


@dataclass(frozen=True, eq=False)
class StepODESteer(FlowMethod):
    """The same field in a single Euler step: a + T ∇h/‖∇h‖."""

    view: ClassVar[View] = View(
        "one-step ODESteer", "wᵀφ(a/‖a‖) + b + log(n₋/n₊)", "∇h/‖∇h‖", "1",
        "√(‖a‖² + T²)", "both sides", "arXiv:2602.17560",
    )  # fmt: skip

    barrier: LogRatioBarrier
    origin: Origin

    @classmethod
    def fit(
        cls, acts: ContrastiveActivations, *, features: Recipe | None = None, C: float = 1.0, tol: float = 1e-5
    ) -> "StepODESteer":
        """As ODESteer.fit, without steps and solver."""
        acts.check("StepODESteer", 2)
        barrier = LogRatioBarrier.fit(acts, Polynomial() if features is None else features, C=C, tol=tol)
        return cls(barrier, acts.origin)

    @cached_property
    def flow(self) -> Flow:
        return Flow(UnitGradient(self.barrier), steps=1)


register(
    ODESteer,
    row=10,
    parity={
        "ODESteer": lambda at: ODESteer.fit(at.acts()),
        "ODESteer, sketch": lambda at: ODESteer.fit(at.acts(), features=PolynomialSketch(n_components=500), tol=1e-4),
        "ODESteer, Fourier, midpoint": lambda at: ODESteer.fit(
            at.acts(), features=RandomFourier(200), solver="midpoint"
        ),
    },
)
register(StepODESteer, row=9)
