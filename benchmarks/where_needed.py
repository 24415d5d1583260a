"""What it buys, at one budget of KL, to steer only the tokens whose h is low, on texts that are given.

    python scripts/get_smollm2.py smollm2
    python benchmarks/where_needed.py smollm2 --data DATA --axis toxicity --layers 22 --kl 0.3 --pairs 60

Data, texts, judges, options and table are those of benchmarks/curvature.py. "where h is low": the same direction, by a
part of ‖a‖, where the linear h is below its median over the desired texts, and nothing elsewhere. A random direction is
steered so too: it says what of a gain is due to the choice of tokens alone. Of a pair the undesired answer holds more
such tokens, so that any push takes more from it: what a model writes by itself is another matter
(published_strength.py --until).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from curvature import CURVED, Methods, main
from torch import Tensor

import odesteer_tl as ot
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.portable.integrate import unit_length

Fit = Callable[[ot.ContrastiveActivations], Any]


@dataclass(frozen=True, eq=False)
class WhereLow:
    """The direction of a method's field where h(a) < until, else 0."""

    method: Any
    barrier: LogRatioBarrier
    until: float

    def __call__(self, a: Tensor) -> Tensor:
        high = (self.barrier.value(a) >= self.until).unsqueeze(-1)
        return unit_length(self.method.vector_field(a)).masked_fill(high, 0.0)


@dataclass(frozen=True, eq=False)
class Gated(FlowMethod):
    """One step along that field."""

    method: Any
    barrier: LogRatioBarrier
    origin: Origin
    until: float

    @cached_property
    def flow(self) -> Flow:
        return Flow(WhereLow(self.method, self.barrier, self.until), steps=1)


def gated(fit: Fit) -> Fit:
    """What `fit` gives, where the linear h is low."""

    def fit_gated(acts: ot.ContrastiveActivations) -> Gated:
        level = ot.ODESteer.fit(acts, features=ot.Linear(), until="desired")
        assert level.until is not None
        return Gated(fit(acts), level.barrier, acts.origin, level.until)

    return fit_gated


EVERYWHERE: Methods = {
    "CAA": ot.CAA.fit,
    "random direction": ot.RandomDirection.fit,
    "h linear, one step": lambda acts: ot.StepODESteer.fit(acts, features=ot.Linear()),
    "gamma 1, C 10, one step": lambda acts: ot.StepODESteer.fit(acts, **CURVED),
}
METHODS: Methods = EVERYWHERE | {f"{name}, where h is low": gated(fit) for name, fit in EVERYWHERE.items()}

if __name__ == "__main__":
    main(METHODS, __doc__)
