"""Solvers: one step of ȧ = v(a), and `path`, the only time loop in the package."""

from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

from odesteer_tl.fields import Field
from odesteer_tl.shapes import Activations, Time, per_activation

SolverName = Literal["euler", "midpoint", "rk4"]


@runtime_checkable
class Solver(Protocol):
    """`order` p: the error at a fixed time shrinks like stepsᵖ. `dt` is a float or lines up with the rows of `a`."""

    order: int

    def step(self, field: Field, a: Activations, dt: Time) -> Activations: ...


class Euler:
    """1st order, 1 evaluation per step."""

    order = 1

    def step(self, field: Field, a: Activations, dt: Time) -> Activations:
        return a + dt * field(a)


class Midpoint:
    """2nd order, 2 evaluations per step."""

    order = 2

    def step(self, field: Field, a: Activations, dt: Time) -> Activations:
        return a + dt * field(a + 0.5 * dt * field(a))


class RK4:
    """4th order, 4 evaluations per step: the classical tableau of Kutta."""

    order = 4

    def step(self, field: Field, a: Activations, dt: Time) -> Activations:
        k1 = field(a)
        k2 = field(a + 0.5 * dt * k1)
        k3 = field(a + 0.5 * dt * k2)
        k4 = field(a + dt * k3)
        return a + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def solver_named(name: SolverName) -> Solver:
    """The solver of that name. Raises ValueError for another name."""
    if name == "euler":
        return Euler()
    if name == "midpoint":
        return Midpoint()
    if name == "rk4":
        return RK4()
    raise ValueError(f'solver must be "euler", "midpoint" or "rk4", got {name!r}.')


def path(field: Field, a: Activations, T: Time, *, steps: int, solver: Solver) -> Iterator[Activations]:
    """a(0), a(T/steps), …, a(T). Negative T flows backwards.

    Raises ValueError for steps < 1 or a T that does not fit.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}. For no steering use T=0.")
    dt = per_activation(T, a) / steps
    yield a
    for _ in range(steps):
        a = solver.step(field, a, dt)
        yield a


def integrate(field: Field, a: Activations, T: Time, *, steps: int, solver: Solver) -> Activations:
    """The flow map a(0) → a(T) of ȧ = v(a), in `steps` equal steps."""
    for now in path(field, a, T, steps=steps, solver=solver):
        a = now
    return a
