"""Fields v(a): the velocity that a flow follows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

from odesteer_tl._shapes import Activations, Direction
from odesteer_tl.flows.barriers import Barrier, Differentiated, LogRatioBarrier, Subspace, with_grad
from odesteer_tl.flows.networks import NetworkBarrier
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import grad_given, linear_grad
from odesteer_tl.portable.values import UpTo, value_given


@runtime_checkable
class Field(Protocol):
    """A velocity for every activation."""

    def __call__(self, a: Activations) -> Activations: ...


@dataclass(frozen=True, eq=False)
class Gradient:
    """v(a) = ∇h(a); with `until` 0 where h(a) ≥ until, so v = ∇min(h, until). Raises ValueError for an object that is
    not a barrier (see `with_grad`), and for an `until` that is not a finite number."""

    barrier: Barrier
    until: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "barrier", with_grad(self.barrier))
        if self.until is not None:
            object.__setattr__(self, "until", checked_level(self.until))

    def __call__(self, a: Activations) -> Activations:
        return self.barrier.grad(a) if self.until is None else self.gradient_function(a)

    @property
    def gradient_function(self) -> GradientFunction:
        """The field as a plain function and its parameters; a barrier of the user's is itself a parameter."""
        barrier = self.barrier
        known = isinstance(barrier, (LogRatioBarrier, Differentiated, NetworkBarrier))
        function = barrier.gradient_function if known else None
        if function is None or (self.until is not None and function.value is None):  # features of the user's
            function = GradientFunction(grad_given, (barrier,), value=value_given)
        return function if self.until is None else UpTo(function, self.until)

    def reduced(self) -> "Subspace[Gradient] | None":
        return _reduced(partial(Gradient, until=self.until), self.barrier)


@dataclass(frozen=True, eq=False)
class UnitGradient:
    """v(a) = ∇h(a)/‖∇h(a)‖, and 0 where the gradient vanishes: dh/dt = ‖∇h‖ ≥ 0 at unit speed. `until`, and what is
    raised, as in `Gradient`."""

    barrier: Barrier
    until: float | None = None

    def __post_init__(self) -> None:
        plain = Gradient(self.barrier, self.until)
        object.__setattr__(self, "barrier", plain.barrier)
        object.__setattr__(self, "until", plain.until)

    def __call__(self, a: Activations) -> Activations:
        return self.gradient_function(a)

    @cached_property
    def gradient_function(self) -> GradientFunction:
        """The field as a plain function and its parameters, as in `Gradient`."""
        return Gradient(self.barrier, self.until).gradient_function.at_unit_speed()

    def reduced(self) -> "Subspace[UnitGradient] | None":
        return _reduced(partial(UnitGradient, until=self.until), self.barrier)


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


def checked_level(until: Any) -> float:
    """`until` as a number. Raises ValueError for anything but a finite one."""
    try:
        level = math.nan if isinstance(until, (str, bytes)) or type(until).__name__ == "bool" else float(until)
    except (TypeError, ValueError):
        level = math.nan
    if not math.isfinite(level):
        raise ValueError(
            "until is the h at which an activation stops, a finite number such as 0.0 (or of ODESteer.fit, where the "
            f'activations are known, the word "desired"); got {until!r}.'
        )
    return level


def _reduced(field: Callable[[Any], Any], barrier: Barrier) -> Subspace[Any] | None:
    reduced_of = getattr(barrier, "reduced", None)
    reduced: Any = reduced_of() if callable(reduced_of) else None
    return None if reduced is None else replace(reduced, inner=field(reduced.inner))
