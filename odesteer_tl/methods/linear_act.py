"""Linear-AcT (arXiv:2410.23054) on the residual stream: carry each coordinate from undesired to desired on its own.

h(a) = Σ_j [½(ω_j − 1)a_j² + β_j a_j] + const; v = ∇h = map(a) − a with map(a) = ωa + β, in one step:
a + T (map(a) − a). It is a gradient flow: T = 1 is the published map, T between 0 and 1 its strength λ, a part of the
straight way. h is a potential, not a log ratio; const puts its 0 halfway between h(μ₋) and h(μ₊).

Fit, per coordinate, s undesired and t desired: optimal transport in one dimension pairs equal quantiles, and ω, β are
the least-squares line through the paired values, ω = cov(s, t)/var(s), β = mean(t) − ω mean(s). With as many rows on
both sides the pairs are those of the sorted samples. Otherwise the exact plan is used, which pairs parts of a row of
the shorter side with several rows of the longer one, so all rows count and their order does not matter.
`match="moments"` is Gaussian-AcT, ω = σ_t/σ_s, and "means" is Mean-AcT, ω = 1. A coordinate that is constant on
undesired text, to the rounding of its dtype, has no line and is only shifted, ω = 1.

`parity=True` is the port that the ODESteer paper compares: the first min(n₊, n₋) rows of each side, and 1e-10 added to
Σs² (a constant coordinate is then set to mean(t)). The port ignores T, which is T = 1. The official code also fits and
maps all layers, one after the other.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Direction
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.degeneracy import rounding_of
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Squares
from odesteer_tl.flows.fields import Gradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import FRACTION, View

Match = Literal["quantiles", "moments", "means"]
"""What the map makes equal on both sides, per coordinate."""


@dataclass(frozen=True, eq=False)
class LinearAcT(FlowMethod):
    """a + T (ωa + β − a): T counts fractions of the map, whatever ‖a‖."""

    view: ClassVar[View] = View(
        "Linear-AcT", "Σ ½(ω − 1)a² + βa + const", "ωa + β − a", "1", "any", "both sides", "arXiv:2410.23054",
        FRACTION,
    )  # fmt: skip

    barrier: LogRatioBarrier
    origin: Origin

    speed: ClassVar[float | None] = None

    @classmethod
    def fit(cls, acts: ContrastiveActivations, *, match: Match = "quantiles", parity: bool = False) -> "LinearAcT":
        """Fit ω and β in float64; `match` and `parity` as the head of this file says.

        Raises ValueError for fewer than 2 activations on a side, an unknown `match`, and `parity` with a `match` other
        than "quantiles".
        """
        acts.check("LinearAcT", 2)
        if match not in get_args(Match):
            raise ValueError(f'match must be "quantiles", "moments" or "means", got {match!r}.')
        if parity and match != "quantiles":
            raise ValueError(f'parity=True is the released code, which matches "quantiles"; got match={match!r}.')
        source, target = acts.undesired.double(), acts.desired.double()
        if parity:
            shorter = min(len(source), len(target))
            source, target = source[:shorter], target[:shorter]
        low, high = source.mean(0), target.mean(0)
        variance = (source - low).square().mean(0)
        if parity:
            omega = _covariance(source - low, target - high) / (variance + 1e-10 / len(source))
        elif match == "means":
            omega = torch.ones_like(low)
        else:
            joint = _covariance(source - low, target - high) if match == "quantiles" else None
            spread = variance.sqrt() * (target - high).square().mean(0).sqrt()
            constant = variance.sqrt() <= rounding_of(acts.undesired.dtype) * source.abs().amax(0)
            omega = torch.where(constant, 1.0, (spread if joint is None else joint) / variance)
        beta = high - omega * low
        weight = torch.cat([(omega - 1) / 2, beta])
        ends = torch.stack([low, high])
        bias = -float((torch.cat([ends.square(), ends], 1) @ weight).mean())
        return cls(LogRatioBarrier(Squares(normalize=False), weight.float(), bias), acts.origin)

    @property
    def omega(self) -> Direction:
        """ω [d_model], the factor of the map in each coordinate."""
        return 1 + 2 * self.barrier.weight.chunk(2)[0]

    @property
    def beta(self) -> Direction:
        """β [d_model], the map of 0."""
        return self.barrier.weight.chunk(2)[1]

    @cached_property
    def flow(self) -> Flow:
        return Flow(Gradient(self.barrier), steps=1)


def _covariance(source: Float[Tensor, "n_undesired d_model"], target: Float[Tensor, "n_desired d_model"]) -> Direction:
    """mean(s t) [d_model] under the optimal plan between the empirical measures of two centred samples.

    Row i of n sorted rows covers the quantiles from i/n to (i + 1)/n. The bounds of both sides, in units of
    1/(n_s n_t), cut the quantiles into pieces; on each piece lies one row of each side.
    """
    n, m = len(source), len(target)
    quantiles = [torch.arange(own + 1, device=source.device) * other for own, other in ((n, m), (m, n))]
    bounds = torch.cat(quantiles).unique()
    starts, lengths = bounds[:-1], bounds.diff().to(source) / (n * m)
    s, t = source.sort(dim=0).values[starts // m], target.sort(dim=0).values[starts // n]
    return (s * t * lengths.unsqueeze(1)).sum(0)


register(LinearAcT, row=7)
