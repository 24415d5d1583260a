"""What it buys, at one budget of KL, that a walk ends where h is high enough: `until="desired"`.

    python scripts/get_smollm2.py smollm2
    python benchmarks/until.py smollm2 --data DATA --axis toxicity --layers 22 --kl 0.3 --pairs 100

Data, texts, judges, options and table are those of benchmarks/curvature.py. The controls say what of a gain is due to
the gate alone: "where h is low" adds a fixed vector, all of it, to the tokens whose h is below the same level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from curvature import CURVED, Methods, main
from torch import Tensor

import odesteer_tl as ot
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod


@dataclass(frozen=True, eq=False)
class VectorWhereLow:
    """v(a) = the direction where h(a) < until, else 0."""

    direction: Tensor
    barrier: LogRatioBarrier
    until: float

    def __call__(self, a: Tensor) -> Tensor:
        return self.direction.expand_as(a).masked_fill((self.barrier.value(a) >= self.until).unsqueeze(-1), 0.0)


@dataclass(frozen=True, eq=False)
class Gated(FlowMethod):
    """a + T v(a), v as above."""

    direction: Tensor
    barrier: LogRatioBarrier
    origin: Origin
    until: float

    @cached_property
    def flow(self) -> Flow:
        return Flow(VectorWhereLow(self.direction, self.barrier, self.until), steps=1)


def gated(direction_of: Callable[[ot.ContrastiveActivations], Tensor]) -> Callable[[ot.ContrastiveActivations], Any]:
    """A vector of length 1, by the level of a linear h."""

    def fit(acts: ot.ContrastiveActivations) -> Gated:
        walk = ot.ODESteer.fit(acts, features=ot.Linear(), until="desired")
        direction = direction_of(acts)
        return Gated(direction / direction.norm(), walk.barrier, acts.origin, float(walk.until or 0.0))

    return fit


def _means(acts: ot.ContrastiveActivations) -> Tensor:
    return (acts.desired.double().mean(0) - acts.undesired.double().mean(0)).float()


def _random(acts: ot.ContrastiveActivations) -> Tensor:
    return torch.randn(acts.desired.shape[1], generator=torch.Generator().manual_seed(0))


METHODS: Methods = {
    "CAA": ot.CAA.fit,
    "random direction": lambda acts: ot.RandomDirection.fit(acts),
    "random direction where h is low": gated(_random),
    "CAA where h is low": gated(_means),
    "h linear, ten steps": lambda acts: ot.ODESteer.fit(acts, features=ot.Linear()),
    "h linear, until": lambda acts: ot.ODESteer.fit(acts, features=ot.Linear(), until="desired"),
    "gamma 1, C 10, ten steps": lambda acts: ot.ODESteer.fit(acts, **CURVED),
    "gamma 1, C 10, until": lambda acts: ot.ODESteer.fit(acts, **CURVED, until="desired"),
}

if __name__ == "__main__":
    main(METHODS, __doc__)
