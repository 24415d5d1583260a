"""Fields v(a): the velocity that a flow follows."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from odesteer_tl._shapes import Activations, Direction
from odesteer_tl.flows.barriers import Barrier, Differentiated, LogRatioBarrier, Subspace, with_grad
from odesteer_tl.flows.networks import NetworkBarrier
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import grad_given, linear_grad


@runtime_checkable
class Field(Protocol):
    """A velocity for every activation."""

    def __call__(self, a: Activations) -> Activations: ...


@dataclass(frozen=True, eq=False)
class Gradient:
    """v(a) = ∇h(a). Raises ValueError for an object that is not a barrier (see `with_grad`)."""

    barrier: Barrier

    def __post_init__(self) -> None:
        object.__setattr__(self, "barrier", with_grad(self.barrier))

    def __call__(self, a: Activations) -> Activations:
        return self.barrier.grad(a)

    @property
    def gradient_function(self) -> GradientFunction:
        """The field as a plain function and its parameters; a barrier of the user's is itself a parameter."""
        if isinstance(self.barrier, (LogRatioBarrier, Differentiated, NetworkBarrier)):
            return self.barrier.gradient_function
        return GradientFunction(grad_given, (self.barrier,))

    def reduced(self) -> "Subspace[Gradient] | None":
        return _reduced(Gradient, self.barrier)


@dataclass(frozen=True, eq=False)
class UnitGradient:
    """v(a) = ∇h(a)/‖∇h(a)‖, and 0 where the gradient vanishes: dh/dt = ‖∇h‖ ≥ 0 at unit speed. Raises as `Gradient`."""

    barrier: Barrier

    def __post_init__(self) -> None:
        object.__setattr__(self, "barrier", with_grad(self.barrier))

    def __call__(self, a: Activations) -> Activations:
        return self.gradient_function(a)

    @cached_property
    def gradient_function(self) -> GradientFunction:
        """The field as a plain function and its parameters, as in `Gradient`."""
        return Gradient(self.barrier).gradient_function.at_unit_speed()

    def reduced(self) -> "Subspace[UnitGradient] | None":
        return _reduced(UnitGradient, self.barrier)


@dataclass(frozen=True, eq=False)
class Constant:
    """v(a) = v for every a: a steering vector."""

    direction: Direction

    def __call__(self, a: Activations) -> Activations:
        return linear_grad(a, self.direction)

    @property
    def gradient_function(self) -> GradientFunction:
        """The field as a plain function and its parameters: the gradient of vᵀa."""
        return GradientFunction(linear_grad, (self.direction,))


def _reduced(field: type[Any], barrier: Barrier) -> Subspace[Any] | None:
    reduced_of = getattr(barrier, "reduced", None)
    reduced: Any = reduced_of() if callable(reduced_of) else None
    return None if reduced is None else replace(reduced, inner=field(reduced.inner))
