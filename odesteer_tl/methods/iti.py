"""ITI (arXiv:2306.03341): add the direction of a linear probe.

`ITI.fit` acts on the residual stream, as the ODESteer paper compares it. `ITI.fit_heads` is the source's form, at the
attention heads: it gives a `HeadShift` per layer (see there for its h and v).

h(a) = θᵀa + b + log(n₋/n₊), a logistic regression on raw activations; v = θ/‖θ‖ in one step: a + T θ/‖θ‖.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear
from odesteer_tl.flows.fields import UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.head_shift import HeadDirection, head_shifts
from odesteer_tl.methods.layers import Layers
from odesteer_tl.methods.registry import register
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
        acts.check("ITI", 2)
        return cls(LogRatioBarrier.fit(acts, Linear(normalize=False), C=C, tol=tol), acts.origin)

    @classmethod
    def fit_heads(
        cls,
        acts: Sequence[ContrastiveActivations],
        n_heads: int,
        *,
        top_k: int = 48,
        direction: HeadDirection = "mass_mean",
        validation: float = 0.2,
        seed: int = 0,
        C: float = 1.0,
    ) -> Layers:
        """The source's form: shift the `top_k` heads with the best probes along θ, by α standard deviations.

            acts = ot.collect_layers(model, desired, undesired, range(n_layers), site="z")
            method = ot.ITI.fit_heads(acts, n_heads=32)
            with ot.steering(model, method, T=15.0):               # T is the source's α

        `acts`: the same texts at `z` of each layer. The share `validation` of the pairs, groups or rows is held out,
        the same ones in every layer. Each head gets a logistic regression on the other rows (C, scikit-learn's
        defaults, 1000 iterations), and heads are ranked by accuracy on the held-out rows (ties: the earlier layer, then
        the lower head). `direction`: "mass_mean", θ = (μ₊ − μ₋)/‖·‖ over all rows, or "probe", the unit coefficients. σ
        is the standard deviation along θ over all rows of both sides; the source takes it from another set of texts,
        its generated questions. Layers without a chosen head are left out of the result.

        Raises ValueError for activations that are not at z, layers that are given twice or have other rows or widths,
        heads that do not divide the width, a `top_k` above the number of heads, and too few rows to hold some out.
        """
        return Layers(head_shifts(acts, n_heads, top_k, direction, validation, seed, C))

    @cached_property
    def flow(self) -> Flow:
        return Flow(UnitGradient(self.barrier), steps=1)


register(
    ITI,
    row=2,
    parity={
        "ITI": lambda at: ITI.fit(at.acts()),
        "ITI, heads": lambda at: ITI.fit_heads([at.acts(layer, "z") for layer in range(3)], n_heads=4, top_k=6),
    },
)
