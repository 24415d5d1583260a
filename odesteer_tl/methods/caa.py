"""CAA (arXiv:2312.06681): add the difference of means.

h(a) = (μ₊ − μ₋)ᵀa + const, the log ratio of N(μ₊, I) to N(μ₋, I); v = ∇h = μ₊ − μ₋, constant and not normalised, in
one step: a + T (μ₊ − μ₋). T = 1 is the published strength.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier, mean_difference
from odesteer_tl.flows.fields import Constant
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import Unit, View


@dataclass(frozen=True, eq=False)
class CAA(FlowMethod):
    """a + T (μ₊ − μ₋)."""

    view: ClassVar[View] = View(
        "CAA", "(μ₊ − μ₋)ᵀa + const", "μ₊ − μ₋", "1", "any", "both sides", "arXiv:2312.06681",
        Unit("differences of means", "--T 1 is the published strength; look from 0.25 to 2."),
    )  # fmt: skip

    barrier: LogRatioBarrier
    origin: Origin

    @classmethod
    def fit(cls, acts: ContrastiveActivations) -> "CAA":
        """Compute the means of both sides. Raises ValueError where they are the same."""
        acts.check("CAA")
        return cls(mean_difference(acts), acts.origin)

    @property
    def speed(self) -> float:
        """‖μ₊ − μ₋‖: T counts differences of means, not lengths."""
        return float(self.barrier.weight.norm())

    @cached_property
    def flow(self) -> Flow:
        return Flow(Constant(self.barrier.weight), steps=1)


register(CAA, row=3)
