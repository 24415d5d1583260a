"""Laws of flows: the reduced integration against the direct one, norms, scales, the great circle, and chatter."""

import math

import pytest
import torch
from instances import (
    ALL_SOLVERS,
    D_MODEL,
    ON_THE_SPHERE,
    REDUCIBLE,
    SOLVERS,
    activations,
    fitted,
    in_float64,
    log_ratio,
    planted,
)

from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear, Polynomial, RandomFourier
from odesteer_tl.flows.fields import Constant, Gradient, UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.remote.payloads import moved


def both(field, solver="euler", steps=10):
    return [Flow(field, SOLVERS[solver], steps, coordinates) for coordinates in ("direct", "reduced")]


def cases(barrier):
    """Activations at random, within span(U), and at zero, wherever the gradient does not vanish."""
    basis = barrier.reduced().basis
    a = activations(6)
    if basis.shape[1] == 1 and barrier.features.normalize:
        return a  # gᵀa/‖a‖: span(U) holds nothing but the two poles, where ∇h = 0 and a unit field has no direction
    inside = activations(3, d_model=basis.shape[1], seed=9) @ basis.T * (D_MODEL / basis.shape[1]) ** 0.5
    return torch.cat([a, inside, torch.zeros(1, basis.shape[0], dtype=torch.float64)])


@pytest.mark.parametrize("name", REDUCIBLE)
@pytest.mark.parametrize("solver", ALL_SOLVERS)
def test_the_reduced_flow_is_the_direct_one(name, solver):
    barrier = in_float64(log_ratio(name))
    a = cases(barrier)
    direct, reduced = both(UnitGradient(barrier), solver)
    size = a.norm(dim=-1).clamp_min(1.0)
    rows = torch.linspace(-2, 3, len(a), dtype=torch.float64)
    for T in (0.4, 3.0, rows):
        gap = (direct(a, T) - reduced(a, T)).norm(dim=-1)
        # Rounding of float64 sums that cancel (raw degree 3: terms 1e4 times the field), over 40 evaluations.
        assert (gap <= 1e-10 * size).all()
        assert ((direct(a, T) - a).norm(dim=-1) > 1e-3).sum() >= len(a) - 1  # a row of T may be near zero


@pytest.mark.parametrize("solver", ["euler", "rk4"])
@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize(("d_model", "rank"), [(24, 8), (24, 24), (24, 105), (120, 30), (120, 105), (8, 105)])
def test_the_reduced_flow_is_the_direct_one_for_every_rank_and_width(solver, degree, d_model, rank):
    acts = planted(d_model=d_model)
    barrier = in_float64(LogRatioBarrier.fit(acts, Polynomial(degree, gamma=2.0, rank=rank)))
    direct, reduced = both(UnitGradient(barrier), solver)
    zero = torch.zeros(int(degree > 1), d_model, dtype=torch.float64)  # degree 1: its first step ends on a pole, ∇h = 0
    a = torch.cat([activations(4, d_model=d_model), acts.desired[:3].double(), zero])  # some rows are landmarks
    gap = (direct(a, 2.0) - reduced(a, 2.0)).norm(dim=-1)
    assert (gap <= 1e-10 * a.norm(dim=-1).clamp_min(1.0)).all()


@pytest.mark.parametrize("recipe", [Polynomial(2, gamma=2.0, rank=24), Polynomial(3, rank=24), RandomFourier(20)])
def test_activations_within_the_span_stay_there_and_agree(recipe):
    acts = planted(d_model=80)
    barrier = in_float64(LogRatioBarrier.fit(acts, recipe))
    basis = barrier.reduced().basis
    a = activations(5, d_model=basis.shape[1]) @ basis.T
    direct, reduced = both(UnitGradient(barrier))
    end = reduced(a, 2.0)
    assert (end - direct(a, 2.0)).norm(dim=-1).max() <= 1e-10 * a.norm(dim=-1).max()
    assert (end - end @ basis @ basis.T).norm(dim=-1).max() <= 1e-10 * a.norm(dim=-1).max()


@pytest.mark.parametrize("name", ["polynomial-3-raw", "polynomial-2-low-rank", "fourier-few", "linear-raw"])
def test_the_plain_gradient_flow_reduces_too(name):
    barrier = in_float64(log_ratio(name))
    direct, reduced = both(Gradient(barrier), "rk4", steps=4)
    a = cases(barrier)
    speed = float(barrier.grad(a).norm(dim=-1).max())
    gap = (direct(a, 1.0 / speed) - reduced(a, 1.0 / speed)).norm(dim=-1)  # a way of about 1
    assert (gap <= 1e-10 * a.norm(dim=-1).clamp_min(1.0)).all()


@pytest.mark.parametrize("name", REDUCIBLE)
@pytest.mark.parametrize("relative", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_in_float32_the_reduced_flow_loses_no_more_than_rounding(name, relative, solver):
    """Against the float64 direct flow of the same weights: within 32·eps·max(1, ‖a‖/T), relative to T."""
    barrier = log_ratio(name)
    a = activations(40).float()
    T = relative * a.norm(dim=-1)
    exact = Flow(UnitGradient(in_float64(barrier)), SOLVERS[solver], 10, "direct")(a.double(), T.double())
    got = Flow(UnitGradient(barrier), SOLVERS[solver], 10, "reduced")(a, T)
    error = (got.double() - exact).norm(dim=-1) / T.double()
    assert error.max() <= 32 * torch.finfo(torch.float32).eps * max(1.0, 1 / relative)


@pytest.mark.parametrize("name", ON_THE_SPHERE)
def test_euler_adds_the_square_of_T_over_steps_to_the_squared_norm(name):
    field, a, T = UnitGradient(in_float64(log_ratio(name))), activations(8), 3.0
    for coordinates in ("direct", "reduced") if name in REDUCIBLE else ("direct",):
        for steps in (1, 10, 37):
            end = Flow(field, SOLVERS["euler"], steps, coordinates)(a, T)
            growth = end.norm(dim=-1).square() - a.norm(dim=-1).square()
            # Exact: v ⟂ a and ‖v‖ = 1 at every step. ‖a‖² is about 24, so 1e-12 is a few hundred roundings; the
            # 1e-12 in r = ‖a‖ + 1e-12 tilts v by 2e-13, which ‖a‖·T multiplies by 30.
            assert (growth - T**2 / steps).abs().max() < 1e-10


@pytest.mark.parametrize(("solver", "steps"), [("midpoint", 20), ("rk4", 10)])
@pytest.mark.parametrize("name", ["linear-unit", "polynomial-2-curved", "sketch-2-unit", "fourier-unit"])
def test_midpoint_and_rk4_keep_the_norm_to_their_order(name, solver, steps):
    field, a, T = UnitGradient(in_float64(log_ratio(name))), activations(8), 1.0
    drift = [
        float(((Flow(field, SOLVERS[solver], n)(a, T).norm(dim=-1)) / a.norm(dim=-1) - 1).abs().max())
        for n in (steps, 2 * steps)
    ]
    order = SOLVERS[solver].order
    # The norm drifts at least as slowly as the order says: steps⁻ᵖ, with 0.4 for steps that are not small.
    assert drift[0] < (T / steps) ** order
    assert drift[0] / max(drift[1], 1e-15) > 2 ** (order - 0.4)


@pytest.mark.parametrize("name", ON_THE_SPHERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steering_commutes_with_scaling(name, dtype):
    barrier = moved(log_ratio(name), dtype=dtype)
    flow, a, T = Flow(UnitGradient(barrier)), activations(6, dtype=dtype), 2.0
    plain = flow(a, T)
    powers = (-40, -10, 10, 60) if dtype == torch.float32 else (-40, -10, 10, 400)
    for power in powers:
        c = 2.0**power  # scaling itself does not round
        # r + 1e-12 stands for r on both sides of the law, and turns the field by as much as 1e-12/r = 1e-12/(3c);
        # at c = 2⁻⁴⁰, ‖a‖ = 4.5e-12, the law holds in kind only.
        slack = 0.3 if power == -40 else 200 * torch.finfo(dtype).eps + 1e-12 * (1 + 1 / c)
        gap = (flow(c * a, c * T) / c - plain).norm(dim=-1) / plain.norm(dim=-1)
        assert gap.max() <= slack


@pytest.mark.parametrize("coordinates", ["direct", "reduced"])
@pytest.mark.parametrize("relative", [0.05, 0.3, 1.0])
def test_a_linear_barrier_on_the_sphere_turns_along_the_great_circle(coordinates, relative):
    g = activations(seed=21)
    field = UnitGradient(LogRatioBarrier(Linear(normalize=True), g, 0.0))
    a = torch.cat([activations(6), 3.0 * g.unsqueeze(0) + 0.5 * activations(6, seed=22)])  # far from g, and near it
    size = a.norm(dim=-1)
    unit, pole = a / size.unsqueeze(-1), g / g.norm()
    to_pole = torch.arccos((unit @ pole).clamp(-1, 1))
    sideways = torch.nn.functional.normalize(pole - (unit @ pole).unsqueeze(-1) * unit, dim=-1)
    angle = torch.clamp_max(to_pole, relative).unsqueeze(-1)
    assert relative > 0.9 or (to_pole > relative).any()
    exact = size.unsqueeze(-1) * (torch.cos(angle) * unit + torch.sin(angle) * sideways)
    arrives = to_pole <= relative
    errors = []
    for steps in (50, 100):
        end = Flow(field, SOLVERS["rk4"], steps, coordinates)(a, relative * size)
        errors.append((end - exact).norm(dim=-1) / size)
    # Before the pole the flow is smooth: RK4 at a step of at most 1/50 errs by about (1/50)⁴/120 = 1e-9.
    assert errors[0][~arrives].max() < 1e-8 or arrives.all()
    # At the pole the unit field jumps: the end keeps dithering within a step of it.
    assert (errors[0][arrives] <= relative / 50).all()
    assert (errors[1][arrives] <= relative / 100).all()


def test_the_three_cases_of_the_great_circle_are_all_there():
    """The law above is vacuous unless some activations arrive and some do not."""
    g, a = activations(seed=21), activations(6)
    near = 3.0 * g + 0.5 * activations(6, seed=22)
    angles = [torch.arccos(torch.nn.functional.cosine_similarity(x, g, dim=-1)) for x in (a, near)]
    assert (angles[0] > 1.0).all()
    assert ((angles[1] > 0.05) & (angles[1] < 0.3)).any()


def test_a_trajectory_is_the_path_of_the_flow_with_h_on_it():
    barrier = in_float64(log_ratio("polynomial-2-low-rank"))
    flow, a = Flow(UnitGradient(barrier)), activations(2, 3)
    trajectory = flow.trajectory(a, 2.0, barrier)
    assert trajectory.activations.shape == (11, 2, 3, D_MODEL)
    assert trajectory.h.shape == (11, 2, 3)
    torch.testing.assert_close(trajectory.activations[0], a, rtol=0, atol=1e-13)  # there and back through U
    assert torch.equal(trajectory.activations[-1], flow(a, 2.0))
    for k in range(11):
        torch.testing.assert_close(trajectory.h[k], barrier.value(trajectory.activations[k]), rtol=0, atol=0)
    halfway = Flow(UnitGradient(barrier), steps=5)(a, 1.0)
    torch.testing.assert_close(trajectory.activations[5], halfway, rtol=0, atol=1e-12)
    assert torch.equal(trajectory.reaches, trajectory.h[-1] >= 0)
    assert trajectory.reaches.any()


@pytest.mark.parametrize("name", ["polynomial-2-curved", "sketch-3-unit", "fourier-raw", "polynomial-3-raw"])
def test_h_climbs_at_the_rate_of_its_gradient(name):
    """dh/dt = ‖∇h‖: for small steps the rise of h is the integral of the gradient's length (trapezoidal rule)."""
    barrier = in_float64(log_ratio(name))
    trajectory = Flow(UnitGradient(barrier), SOLVERS["rk4"], 40).trajectory(activations(5), 0.4, barrier)
    speed = barrier.grad(trajectory.activations).norm(dim=-1)
    rise = 0.01 * (speed[1:] + speed[:-1]) / 2
    # The rule errs by step³/12 of the second derivative: 1e-7 of a field that bends on the scale of ‖a‖ = 5.
    assert (trajectory.h.diff(dim=0) - rise).abs().max() <= 1e-4 * rise.max()
    assert not trajectory.chatters.any()


@pytest.mark.parametrize("coordinates", ["direct", "reduced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chatter_is_flagged_past_the_maximum_and_not_before(coordinates, dtype):
    """h = gᵀa/‖a‖ has its maximum at the angle θ from a: ten Euler steps overshoot where T/‖a‖ > θ, not below."""
    g = torch.zeros(D_MODEL, dtype=dtype)
    g[0] = 2.0
    barrier = LogRatioBarrier(Linear(normalize=True), g, 0.0)
    theta = torch.linspace(0.2, 1.5, 14, dtype=dtype)
    a = torch.zeros(14, D_MODEL, dtype=dtype)
    a[:, 0], a[:, 1] = 4 * torch.cos(theta), 4 * torch.sin(theta)
    flow = Flow(UnitGradient(barrier), SOLVERS["euler"], 10, coordinates)
    for factor in (0.1, 0.5, 0.9):  # an Euler step turns by arctan of its length: never further than the exact flow
        assert not flow.trajectory(a, factor * 4 * theta, barrier).chatters.any()
    for factor in (1.5, 3.0):
        assert flow.trajectory(a, factor * 4 * theta, barrier).chatters.all()
    mixed = torch.where(torch.arange(14) % 2 == 0, 0.5, 2.0).to(dtype) * 4 * theta
    assert flow.trajectory(a, mixed, barrier).chatters.tolist() == [False, True] * 7


def test_rounding_alone_is_no_chatter():
    """At the maximum itself nothing climbs any more; float32 noise in h must not raise the flag at T = 0."""
    barrier = log_ratio("polynomial-2-curved")
    still = Flow(UnitGradient(barrier)).trajectory(activations(200, dtype=torch.float32), 0.0, barrier)
    assert not still.chatters.any()


def test_without_a_barrier_nothing_chatters_and_nothing_arrives():
    trajectory = Flow(Constant(activations())).trajectory(activations(2, 3), 1.0, None)
    assert trajectory.h is None
    assert trajectory.chatters.shape == trajectory.reaches.shape == (2, 3)
    assert not trajectory.chatters.any() and not trajectory.reaches.any()


def test_auto_reduces_where_it_pays_and_gives_the_same_either_way():
    acts = planted(d_model=48)
    fits = {rank: LogRatioBarrier.fit(acts, Polynomial(3, rank=rank)) for rank in (10, 40)}
    squares = LogRatioBarrier.fit(acts, Polynomial(2, rank=40))
    chosen = [
        (fits[10], 10, True),
        (fits[10], 1, False),
        (fits[40], 10, False),
        (squares, 10, True),  # elementwise steps pay at any rank
    ]
    a = activations(3, d_model=48)
    for barrier, steps, reduces in chosen:
        field = UnitGradient(in_float64(barrier))
        evaluated = []

        class Spy:
            def __init__(self, field, seen):
                self.field, self.seen = field, seen

            def __call__(self, x):
                self.seen.append(x.shape[-1])
                return self.field(x)

            def reduced(self):
                found = self.field.reduced()
                return type(found)(found.basis, Spy(found.inner, self.seen), found.elementwise)

        auto = Flow(Spy(field, evaluated), steps=steps)(a, 2.0)
        assert all((width != 48) == reduces for width in evaluated) and len(evaluated) == steps
        torch.testing.assert_close(auto, Flow(field, steps=steps, coordinates="direct")(a, 2.0), rtol=0, atol=1e-12)


def test_far_beyond_the_maximum_the_end_is_finite_and_of_the_norm_that_eulers_law_says():
    barrier = in_float64(log_ratio("polynomial-2-curved"))
    a = activations(5)
    T = 50 * a.norm(dim=-1)
    for flow in both(UnitGradient(barrier)):
        end = flow(a, T)
        expected = (a.norm(dim=-1).square() + T.square() / 10).sqrt()
        assert (end.norm(dim=-1) / expected - 1).abs().max() < 1e-10
        assert math.isfinite(float(end.sum()))


def test_backwards_in_time_it_is_a_rise_of_h_that_chatters():
    method, a = fitted("odesteer"), activations(5, dtype=torch.float32)
    assert not method.trajectory(a, T=-0.5).chatters.any()
    assert method.trajectory(a, T=-200.0).chatters.all()
    rows = method.trajectory(a, T=torch.tensor([0.5, -0.5, 0.5, -0.5, 200.0]))
    assert rows.chatters.tolist() == [False, False, False, False, True]
