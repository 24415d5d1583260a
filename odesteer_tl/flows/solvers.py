"""Solvers: one step of ȧ = v(a), and the time loop of `integrate` with one of them."""

from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

from odesteer_tl._shapes import Activations, Time
from odesteer_tl.flows.fields import Field
from odesteer_tl.portable.integrate import euler, flowed, midpoint, rk4
from odesteer_tl.portable.integrate import path as path_of

SolverName = Literal["euler", "midpoint", "rk4"]


@runtime_checkable
class Solver(Protocol):
    """`order` p: the error at a fixed time falls like 1/stepsᵖ. `dt` is a float, or a tensor with one value per row."""

    order: int

    def step(self, field: Field, a: Activations, dt: Time) -> Activations: ...


class Euler:
    """1st order, 1 evaluation per step."""

    order = 1
    step = staticmethod(euler)


class Midpoint:
    """2nd order, 2 evaluations per step."""

    order = 2
    step = staticmethod(midpoint)


class RK4:
    """4th order, 4 evaluations per step: the classical tableau of Kutta."""

    order = 4
    step = staticmethod(rk4)


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
    return path_of(field, a, T, solver.step, steps)


def integrate(field: Field, a: Activations, T: Time, *, steps: int, solver: Solver) -> Activations:
    """The flow map a(0) → a(T) of ȧ = v(a), in `steps` equal steps. Raises as `path` does."""
    return flowed(a, T, field, solver.step, steps)
