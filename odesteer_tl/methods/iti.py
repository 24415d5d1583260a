"""ITI (arXiv:2306.03341) on the residual stream, as the ODESteer paper compares it: add the direction of a probe.

h(a) = θᵀa + b + log(n₋/n₊), a logistic regression on raw activations; v = θ/‖θ‖ in one step: a + T θ/‖θ‖.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from odesteer_tl.activations import ContrastiveActivations, Origin
from odesteer_tl.barriers import LogRatioBarrier
from odesteer_tl.features import Linear
from odesteer_tl.fields import UnitGradient
from odesteer_tl.flow import Flow
from odesteer_tl.methods.base import FlowMethod
from odesteer_tl.methods.view import View


@dataclass(frozen=True, eq=False)
class ITI(FlowMethod):
    """a + T θ/‖θ‖, θ the weight of a linear probe."""

    view: ClassVar[View] = View("ITI", "θᵀa + b + log(n₋/n₊)", "θ/‖θ‖", "1", "any", "both sides", "arXiv:2306.03341")

    barrier: LogRatioBarrier
    origin: Origin

    @classmethod
    def fit(cls, acts: ContrastiveActivations, *, C: float = 1.0, tol: float = 1e-4) -> "ITI":
        """Fit the probe (scikit-learn's logistic regression, its default C and tolerance, as the paper's code)."""
        return cls(LogRatioBarrier.fit(acts, Linear(normalize=False), C=C, tol=tol), acts.origin)

    @cached_property
    def flow(self) -> Flow:
        return Flow(UnitGradient(self.barrier), steps=1)
