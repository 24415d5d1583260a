"""Fields v(a): the velocity that a flow follows."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from odesteer_tl.barriers import Barrier, Subspace
from odesteer_tl.features import norm
from odesteer_tl.shapes import Activations, Direction


@runtime_checkable
class Field(Protocol):
    """A velocity for every activation."""

    def __call__(self, a: Activations) -> Activations: ...


@dataclass(frozen=True, eq=False)
class Gradient:
    """v(a) = ∇h(a)."""

    barrier: Barrier

    def __call__(self, a: Activations) -> Activations:
        return self.barrier.grad(a)

    def reduced(self) -> "Subspace[Gradient] | None":
        return _reduced(Gradient, self.barrier)


@dataclass(frozen=True, eq=False)
class UnitGradient:
    """v(a) = ∇h(a)/‖∇h(a)‖, and 0 where the gradient vanishes: dh/dt = ‖∇h‖ ≥ 0 at unit speed."""

    barrier: Barrier

    def __call__(self, a: Activations) -> Activations:
        g = self.barrier.grad(a)
        return g / norm(g).clamp_min(torch.finfo(g.dtype).tiny)

    def reduced(self) -> "Subspace[UnitGradient] | None":
        return _reduced(UnitGradient, self.barrier)


@dataclass(frozen=True, eq=False)
class Constant:
    """v(a) = v, whatever a: a steering vector."""

    direction: Direction

    def __call__(self, a: Activations) -> Activations:
        return self.direction.expand_as(a)


def _reduced(field: type[Any], barrier: Barrier) -> Subspace[Any] | None:
    reduce = getattr(barrier, "reduced", None)
    found: Any = reduce() if callable(reduce) else None
    return None if found is None else replace(found, inner=field(found.inner))
