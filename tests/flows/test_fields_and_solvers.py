"""Laws of fields and solvers: unit speed, tangency, orders, and agreement with torchdiffeq."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from instances import (
    ALL_FIELDS,
    ALL_SOLVERS,
    BARRIERS,
    D_MODEL,
    FIELDS,
    ON_THE_SPHERE,
    SOLVERS,
    activations,
    in_float64,
    log_ratio,
)
from torchdiffeq import odeint

from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear, Squares
from odesteer_tl.flows.fields import Constant, Gradient, UnitGradient
from odesteer_tl.flows.solvers import integrate, path, solver_named


def rotation(a):
    """ȧ = J a: a circle of radius ‖a‖ at unit angular speed, nonlinear enough for every order to show."""
    return torch.stack([-a[..., 1], a[..., 0]], dim=-1)


def turned(a, angle):
    c, s = math.cos(angle), math.sin(angle)
    return a @ torch.tensor([[c, s], [-s, c]], dtype=a.dtype)


@pytest.mark.parametrize("name", list(BARRIERS))
def test_a_unit_gradient_has_length_one_and_the_direction_of_the_gradient(name):
    barrier, a = BARRIERS[name](), activations(2, 5)
    v, g = UnitGradient(barrier)(a), Gradient(barrier)(a)
    assert (v.norm(dim=-1) - 1).abs().max() < 1e-14  # float64
    assert torch.equal(g, barrier.grad(a))
    assert ((v * g).sum(-1) - g.norm(dim=-1)).abs().max() <= 1e-14 * g.norm(dim=-1).max()


@pytest.mark.parametrize("name", ON_THE_SPHERE)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_field_of_a_function_of_direction_is_tangent_to_the_sphere(name, scale):
    field, a = UnitGradient(in_float64(log_ratio(name))), scale * activations(20)
    # ‖v‖ = 1, so this is the cosine. Projecting leaves 1e-16 of a gradient that can be 1e2 times its tangent part;
    # r + 1e-12 in place of r leaves 1e-12/r, 2e-10 for the smallest scale.
    assert ((a * field(a)).sum(-1) / a.norm(dim=-1)).abs().max() <= 1e-13 + 1e-12 / scale


def test_the_field_of_raw_features_is_not_tangent():
    field, a = UnitGradient(in_float64(log_ratio("polynomial-2-raw"))), activations(20)
    assert ((a * field(a)).sum(-1) / a.norm(dim=-1)).abs().max() > 0.05


@pytest.mark.parametrize("kind", [UnitGradient, Gradient])
def test_where_the_gradient_vanishes_the_field_is_zero_and_no_nan(kind):
    flat = LogRatioBarrier(Squares(normalize=False), torch.cat([-torch.ones(4), torch.zeros(4)]).double(), 1.0)
    a = torch.zeros(3, 4, dtype=torch.float64)
    a[0] = 1.0
    v = kind(flat)(a)
    assert v[0].norm() > 0.9
    assert torch.equal(v[1:], torch.zeros_like(v[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_speed_holds_for_gradients_of_any_size(dtype):
    # 2^±60 squared leaves float32 and 2^±600 squared float64.
    exponent = 100 if dtype == torch.float32 else 900
    w = activations(dtype=dtype)
    for scale in (2.0**exponent, 2.0**-exponent):
        field = UnitGradient(LogRatioBarrier(Linear(normalize=False), scale * w, 0.0))
        v = field(activations(3, dtype=dtype))
        torch.testing.assert_close(v, (w / w.norm()).expand(3, -1), rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_a_constant_field_is_the_same_everywhere():
    direction = activations()
    v = Constant(direction)(activations(2, 3))
    assert v.shape == (2, 3, D_MODEL)
    assert (v == direction).all()


@pytest.mark.parametrize("name", ALL_FIELDS)
def test_fields_treat_every_activation_on_its_own(name):
    field, a = FIELDS[name](), activations(2, 3)
    rows = torch.stack([torch.stack([field(a[i, j]) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(field(a), rows, rtol=1e-9, atol=1e-11)  # matrix products sum in another order


def observed_order(field, a, exact, T, solver, steps):
    errors = [
        float((integrate(field, a, T, steps=n, solver=solver) - exact).norm(dim=-1).max()) for n in (steps, 2 * steps)
    ]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_the_observed_order_on_a_rotation_is_the_declared_order(name):
    solver, a, T = SOLVERS[name], activations(4, d_model=2), 2.0
    order = observed_order(rotation, a, turned(a, T), T, solver, steps=32)
    # Higher orders of the step 1/16 bend the slope by a few per cent; the next order is a whole unit away.
    assert order == pytest.approx(solver.order, abs=0.1)


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_the_observed_order_on_a_nonlinear_field_is_the_declared_order(name):
    """Steps of a rotation are linear in a: this field sees the parts of a tableau that a linear one does not."""
    field, a, T = FIELDS["unit-gradient"](), activations(4), 3.0
    exact = integrate(field, a, T, steps=400, solver=SOLVERS["rk4"])  # its own error is below 1e-10
    order = observed_order(field, a, exact, T, SOLVERS[name], steps=12)
    assert order == pytest.approx(SOLVERS[name].order, abs=0.3)  # a step of 1/4 is far from the limit


@pytest.mark.parametrize("field_name", ALL_FIELDS)
@pytest.mark.parametrize("name", ["euler", "midpoint"])
@pytest.mark.parametrize("T", [2.0, -1.0])
def test_integrate_equals_torchdiffeq(field_name, name, T):
    field, a, steps = FIELDS[field_name](), activations(2, 3), 8  # T/8 is exact: torchdiffeq takes exactly 8 steps
    times = torch.tensor([0.0, T], dtype=torch.float64)
    expected = odeint(lambda t, x: field(x), a, times, method=name, options={"step_size": abs(T) / steps})[-1]
    got = integrate(field, a, T, steps=steps, solver=SOLVERS[name])
    # The same formula with sums in another order; the steep fields amplify rounding, so relative to the way made.
    assert (got - expected).abs().max() <= 1e-12 * (1 + float((expected - a).abs().max()))


def test_rk4_equals_torchdiffeq_on_a_linear_field():
    """torchdiffeq's rk4 is the 3/8 rule: the same polynomial of the step on a linear field, so equal to rounding."""
    a, steps = activations(4, d_model=2), 8
    times = torch.tensor([0.0, 2.0], dtype=torch.float64)
    expected = odeint(lambda t, x: rotation(x), a, times, method="rk4", options={"step_size": 2.0 / steps})[-1]
    assert (integrate(rotation, a, 2.0, steps=steps, solver=SOLVERS["rk4"]) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("field_name", ["unit-gradient", "unit-gradient-sketch", "unit-gradient-own", "constant"])
def test_rk4_equals_torchdiffeq_to_its_order_on_every_field(field_name):
    field, a, T = FIELDS[field_name](), activations(3), 1.0
    times = torch.tensor([0.0, T], dtype=torch.float64)
    gaps = []
    for steps in (8, 16):
        expected = odeint(lambda t, x: field(x), a, times, method="rk4", options={"step_size": T / steps})[-1]
        gaps.append(float((integrate(field, a, T, steps=steps, solver=SOLVERS["rk4"]) - expected).norm()))
    # Two rules of order 4 part like step⁴ (16 per halving), until both are exact to float64 rounding.
    assert gaps[0] < 1e-5
    assert gaps[1] <= max(gaps[0] / 10, 1e-13)


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_one_step_uses_the_tableau_of_its_name(name):
    """On ȧ = (1, a₀³) from 0 a step of size 1 ends at the quadrature of t³ by the rule's nodes and weights."""

    def field(a):
        return torch.stack([torch.ones_like(a[..., 0]), a[..., 0] ** 3], dim=-1)

    end = integrate(field, torch.zeros(2, dtype=torch.float64), 1.0, steps=1, solver=SOLVERS[name])
    # Left end: 0. Midpoint: 1/8. Kutta's weights 1/6, 4/6, 1/6 (Simpson): 4/6/8 + 1/6 = 1/4.
    assert end.tolist() == pytest.approx([1.0, {"euler": 0.0, "midpoint": 0.125, "rk4": 0.25}[name]], abs=1e-15)


@pytest.mark.parametrize("name", ALL_SOLVERS)
@pytest.mark.parametrize("field_name", ALL_FIELDS)
def test_a_tensor_T_equals_one_float_per_row(name, field_name):
    field, a = FIELDS[field_name](), activations(4, 3)
    T = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)
    together = integrate(field, a, T, steps=3, solver=SOLVERS[name])
    for i, t in enumerate(T.tolist()):
        alone = integrate(field, a[i], t, steps=3, solver=SOLVERS[name])
        torch.testing.assert_close(together[i], alone, rtol=1e-9, atol=1e-11)  # sums in another order
    per_token = integrate(field, a, T.unsqueeze(1).expand(4, 3), steps=3, solver=SOLVERS[name])
    torch.testing.assert_close(per_token, together, rtol=1e-12, atol=1e-12)


def test_negative_T_flows_back_to_where_it_began():
    field, a = FIELDS["unit-gradient"](), activations(5)
    gaps = []
    for steps in (10, 20):
        there = integrate(field, a, 1.5, steps=steps, solver=SOLVERS["rk4"])
        back = integrate(field, there, -1.5, steps=steps, solver=SOLVERS["rk4"])
        gaps.append(float((back - a).norm(dim=-1).max()))
    assert (there - a).norm(dim=-1).min() > 1.0
    # The round trip errs by RK4's own local error, 1e-6 at this step, and falls by 2⁴ (the even order may cancel: 2⁵).
    assert gaps[0] < 1e-5
    assert gaps[1] < gaps[0] / 12


@pytest.mark.parametrize("name", ALL_SOLVERS)
def test_a_path_has_both_ends_and_equal_steps(name):
    field, a = FIELDS["unit-gradient"](), activations(5)
    points = list(path(field, a, 2.0, steps=4, solver=SOLVERS[name]))
    assert len(points) == 5
    assert points[0] is a
    assert torch.equal(points[-1], integrate(field, a, 2.0, steps=4, solver=SOLVERS[name]))
    for before, after in pairwise(points):
        assert torch.equal(after, integrate(field, before, 0.5, steps=1, solver=SOLVERS[name]))


def test_solvers_go_by_their_names():
    for name, solver in SOLVERS.items():
        assert type(solver_named(name)) is type(solver)
    assert np.array_equal([SOLVERS[n].order for n in ("euler", "midpoint", "rk4")], [1, 2, 4])
