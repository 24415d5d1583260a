"""Laws of methods: what `steer` promises for every one of them, and what each is by its own formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import (
    ALL_METHODS,
    BY_NORM,
    D_MODEL,
    METHODS,
    RECIPES,
    SPHERICAL,
    Own,
    activations,
    fitted,
    log_ratio,
    planted,
    strengths,
    taken,
)

import odesteer_tl as ot
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.features import Polynomial, PolynomialSketch, RandomFourier
from odesteer_tl.methods import CAA, ITI, GradientFlow, ODESteer, RandomDirection, StepODESteer
from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.sites import Site
from odesteer_tl.remote.packing import moved

AT = {"headshift": "z"}
"""Methods that were not fitted at `resid_post`."""

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("name", ALL_METHODS)
@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_no_strength_returns_the_very_same_tensor(name, zero):
    a = activations(3)
    for strength in strengths(name, {"T": zero}, {"relative_T": zero}):
        assert fitted(name).steer(a, **strength) is a


@pytest.mark.parametrize("name", ALL_METHODS)
def test_strength_moves_activations_by_the_length_it_says(name):
    bent = name in ("hpr", "recontrol", "angular")  # along their ways the direction and the speed change
    a, T = activations(6, dtype=torch.float64 if bent else torch.float32), 1e-3 if bent else 1.0
    moved_by = (fitted(name).steer(a, T=T) - a).norm(dim=-1) / T
    if name == "caa":
        acts = planted()
        expected = (acts.desired.mean(0) - acts.undesired.mean(0)).norm()
    elif name == "gradientflow-any-speed":
        expected = log_ratio("linear-raw").weight.norm()
    elif name == "headshift":  # σ on each of its heads
        expected = fitted(name).sigma.norm()
    elif fitted(name).speed is None:
        expected = fitted(name).vector_field(a).norm(dim=-1)  # a map: one straight step
    else:
        expected = torch.tensor(1.0)  # unit speed for unit time; a curved way is a little shorter as the crow flies
    assert (moved_by <= expected * 1.0001).all()
    assert (moved_by >= expected * 0.95).all()


@pytest.mark.parametrize("name", ALL_METHODS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_shape_dtype_and_device_are_kept(name, dtype, batch):
    a = activations(*batch, dtype=dtype)
    for out in (fitted(name).steer(a, T=taken(name, 1.5)), fitted(name).vector_field(a)):
        assert (out.shape, out.dtype, out.device) == (a.shape, dtype, a.device)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ALL_METHODS)
def test_the_input_is_never_written_to(name):
    a = activations(4, dtype=torch.float32)
    before = a.clone()
    fitted(name).steer(a, T=taken(name, 2.0))
    fitted(name).vector_field(a)
    fitted(name).trajectory(a, T=taken(name, 2.0))
    assert torch.equal(a, before)


@pytest.mark.parametrize("name", ALL_METHODS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    dtype=st.sampled_from(FLOATS),
    exponent=st.integers(-30, 30),
    T=st.floats(-50, 50, width=32),
    seed=st.integers(0, 10**6),
    zeros=st.booleans(),
)
def test_whatever_the_shape_dtype_and_scale_there_is_no_nan(name, batch, dtype, exponent, T, seed, zeros):
    largest = {torch.float16: 8, torch.bfloat16: 30}.get(dtype, 30)  # 2¹⁰ · 65 leaves float16
    a = (activations(*batch, seed=seed) * 2.0 ** min(exponent, largest)).to(dtype)
    if zeros:
        a = a * (torch.arange(a.numel() // D_MODEL).reshape(batch) % 2).unsqueeze(-1).to(dtype)
    method, T = fitted(name), taken(name, T)
    out = method.steer(a, T=T)
    assert out.shape == a.shape and out.dtype == a.dtype
    assert not torch.isnan(out).any()
    # The way is |T| times the speed at most, and the end lies within it.
    speed = {"caa": 10.0, "gradientflow-any-speed": 10.0, "headshift": 10.0}.get(name, 1.0)
    if method.speed is None:
        speed = method.vector_field(a.double()).norm(dim=-1)
    if name == "recontrol":  # ‖∇V‖ nowhere exceeds the product of the layers' largest singular values
        speed = math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in method.barrier.network.weights)
    rounding = 4 * torch.finfo(dtype).eps * (a.double().norm(dim=-1) + abs(T) * speed) + 1e-6 * abs(T) + 1e-6
    # A flow of unit speed covers |T|; in float32 the way back from m + 1 coordinates adds rounding of ‖a‖.
    rounding = rounding + 1e-5 * a.double().norm(dim=-1)
    most = abs(T) * speed + rounding * D_MODEL**0.5
    beyond = most > torch.finfo(dtype).max  # a map of a large activation may end where the dtype has no numbers
    assert (((out.double() - a.double()).norm(dim=-1) <= most) | beyond).all()


@pytest.mark.parametrize("cls", [ot.ITI, ot.ODESteer, ot.StepODESteer, ot.RepE, ot.MiMiC, ot.LinearAcT])
def test_one_sample_is_too_few(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs at least 2 desired and 2 undesired.*got 1 and 45"):
        cls.fit(planted(1, 45))


@pytest.mark.parametrize("name", ALL_METHODS)
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e15, 1e30])
def test_zero_tiny_and_huge_activations_stay_finite(name, size):
    if name == "gradientflow-own":
        size = min(size, 1e15)  # its ‖a‖² leaves float32 above 1e19: what is not a number in h is none in its flow
    if fitted(name).speed is None:
        size = min(size, 1e15)  # the way of a map grows with ‖a‖, and relative_T multiplies it by ‖a‖ again
    a = size * activations(3, dtype=torch.float32)
    for out in (fitted(name).steer(a, **s) for s in strengths(name, {"T": 3.0}, {"relative_T": 0.5})):
        assert torch.isfinite(out).all()
    assert torch.isfinite(fitted(name).vector_field(a)).all()


@pytest.mark.parametrize("name", SPHERICAL)
def test_the_zero_activation_is_steered_and_grows_by_the_law_of_its_steps(name):
    method = fitted(name)
    out = method.steer(torch.zeros(D_MODEL, dtype=torch.float64), T=2.0)
    if method.flow.solver.order == 1:
        # From 0 the first step goes T/N along g, each further one T/N at a right angle: T/√N in all.
        assert float(out.norm()) == pytest.approx(2.0 / method.flow.steps**0.5, rel=1e-6)
    else:
        assert 0.1 < float(out.norm()) <= 2.0


@pytest.mark.parametrize("name", SPHERICAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steer_commutes_with_scaling(name, dtype):
    method, a = fitted(name), activations(6, dtype=dtype)
    plain = method.steer(a, T=2.0)
    for c in (2.0**-12, 2.0**-4, 2.0**9, 2.0**40):
        gap = (method.steer(c * a, T=c * 2.0) / c - plain).norm(dim=-1) / plain.norm(dim=-1)
        # Powers of two do not round; r + 1e-12 turns the field by 1e-12/(3c).
        assert gap.max() <= 300 * torch.finfo(dtype).eps + 1e-12 * (1 + 1 / c)


@pytest.mark.parametrize("name", BY_NORM)
def test_relative_T_is_T_in_units_of_each_norm(name):
    method, a = fitted(name), activations(4, 3)
    T = 0.3 * a.norm(dim=-1)
    # Both sides compute the same products of float64 numbers.
    torch.testing.assert_close(method.steer(a, relative_T=0.3), method.steer(a, T=T), rtol=1e-12, atol=1e-12)
    rows = torch.tensor([0.1, 0.2, 0.0, -0.3], dtype=torch.float64)
    expected = torch.stack([method.steer(a[i], relative_T=float(rows[i])) for i in range(4)])
    torch.testing.assert_close(method.steer(a, relative_T=rows), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ALL_METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_T_equals_one_float_per_row(name, dtype):
    method, a = fitted(name), activations(4, 3, dtype=dtype)
    T = taken(name, torch.tensor([0.0, 1.0, -2.0, 3.5]))
    expected = torch.stack([method.steer(a[i], T=float(T[i])) for i in range(4)])
    # Matrix products over all rows sum in another order than over one.
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(method.steer(a, T=T), expected, rtol=tolerance, atol=5 * tolerance)
    one = taken(name, 2.0)
    assert torch.equal(method.steer(a, T=torch.tensor(one)), method.steer(a, T=float(torch.tensor(one))))


@pytest.mark.parametrize("name", ALL_METHODS)
def test_the_velocity_is_the_derivative_of_steering_at_no_strength(name):
    method, a, eps = fitted(name), activations(5), 1e-5
    ends = (0.0, eps) if taken(name, -1.0) > 0 else (-eps, eps)  # one for which T has bounds is linear in it
    slope = (method.steer(a, T=ends[1]) - method.steer(a, T=ends[0])) / (ends[1] - ends[0])
    # Central difference in float64: eps² · field curvature plus 1e-16 · ‖a‖/eps.
    assert (slope - method.vector_field(a)).abs().max() < 1e-8


@pytest.mark.parametrize("name", ALL_METHODS)
def test_a_trajectory_ends_where_steer_does(name):
    method, a, T = fitted(name), activations(2, 3), taken(name, 1.5)
    trajectory = method.trajectory(a, T=T)
    torch.testing.assert_close(trajectory.activations[-1], method.steer(a, T=T), rtol=0, atol=1e-12)
    if method.barrier is None:
        assert trajectory.h is None
    else:
        h = moved(method.barrier, dtype=torch.float64).value(trajectory.activations)
        torch.testing.assert_close(trajectory.h, h, rtol=1e-12, atol=1e-12)
        on_the_move = method.vector_field(a).norm(dim=-1) > 0  # all, but where a gate is closed
        assert (trajectory.h[-1] > trajectory.h[0])[on_the_move].all() and on_the_move.any()
    for strength in strengths(name, {"relative_T": 0.2}):
        relative = method.trajectory(a, **strength).activations[-1]
        torch.testing.assert_close(relative, method.steer(a, **strength), rtol=0, atol=1e-12)


def carried_out(edit, chosen, state):
    """The edit of tokens that are each a prompt's last."""
    return edit.apply(chosen if edit.of_query is None else edit.of_query(chosen), chosen, state)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_edits_do_what_steer_does(name):
    method = fitted(name)
    chosen, rows = activations(5, dtype=torch.float32), torch.tensor([2, 0, 0, 1, 2])
    one = taken(name, 2.0)
    (edit,) = method.edits(T=one)
    assert isinstance(edit, Edit) and edit.read == edit.write == Site(3, AT.get(name, "resid_post"))
    assert edit.write.hook_name == f"blocks.3.{'attn.hook_z' if name in AT else 'hook_resid_post'}"
    assert torch.equal(carried_out(edit, chosen, State(rows)), method.steer(chosen, T=one))
    T = taken(name, torch.tensor([0.5, 1.0, -2.0]))
    (edit,) = method.edits(T=T)
    assert torch.equal(carried_out(edit, chosen, State(rows)), method.steer(chosen, T=T[rows]))
    for strength in strengths(name, {"relative_T": 0.25}, {"T": 0.25}):
        (edit,) = method.edits(**strength, layer=1)
        assert edit.write == Site(1, AT.get(name, "resid_post"))
        assert torch.equal(carried_out(edit, chosen, State(rows)), method.steer(chosen, **strength))
    (edit,) = method.edits(T=0)
    assert carried_out(edit, chosen, State(rows)) is chosen


@pytest.mark.parametrize("name", ALL_METHODS)
def test_float64_activations_are_computed_in_float64(name):
    method, a = fitted(name), activations(6)
    T = taken(name, 2.0)
    exact = method.steer(a, T=T)
    rounded = method.steer(a.float(), T=T).double()
    gap = (exact - rounded).norm(dim=-1) / a.norm(dim=-1)
    # 1e-7 is one float32 rounding of the input; ten steps add up to a few dozen. Zero would mean that one was computed
    # as the other.
    assert 1e-9 < gap.max() < 1e-5
    assert torch.equal(method.to(dtype=torch.float64).steer(a, T=T), exact)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_to_leaves_the_method_as_it_was(name):
    method, a = fitted(name), activations(3, dtype=torch.float32)
    before = method.steer(a, T=1.0)
    other = method.to(dtype=torch.float64)
    assert type(other) is type(method) and other is not method
    assert other.layer == method.layer
    assert torch.equal(method.steer(a, T=1.0), before)


@pytest.mark.parametrize("name", ALL_METHODS)
@pytest.mark.parametrize(("relative", "least", "most"), [(0.1, 0.008, 0.04), (0.01, 0.08, 0.4)])
def test_bfloat16_loses_the_share_of_the_displacement_that_is_documented(name, relative, least, most):
    """About 2 % at T/‖a‖ = 0.1, about 17 % at 0.01: the final rounding to 2⁻⁹ is all that is lost."""
    if name in ("caa", "gradientflow-any-speed", "headshift"):
        relative = relative / float(fitted(name).vector_field(activations(1))[0].norm())
    a = activations(200, dtype=torch.bfloat16)
    strength = {"relative_T": relative}
    if fitted(name).speed is None:
        way = fitted(name).vector_field(a.float()).norm(dim=-1)
        a, way = a[way > 0], way[way > 0]  # where a gate is open
        strength = {"T": relative * a.float().norm(dim=-1) / way}
        if taken(name, -1.0) > 0:
            a, strength = a[strength["T"] <= 1], {"T": strength["T"][strength["T"] <= 1]}
    exact = fitted(name).steer(a.float(), **strength)
    got = fitted(name).steer(a, **strength)
    share = (got.float() - exact).norm(dim=-1) / (exact - a.float()).norm(dim=-1)
    # A factor of 2.4 either side of the documented figures.
    assert least < share.median() < most


@pytest.mark.parametrize("name", ALL_METHODS)
def test_steering_differentiates_as_finite_differences_do(name):
    method, a, u, eps = fitted(name), activations(3), activations(3, seed=8), 1e-6
    T = taken(name, 1.5)

    def steer(x):
        return method.steer(x, T=T)

    end, slope = torch.func.jvp(steer, (a,), (u,))
    assert torch.equal(end, steer(a))
    expected = (steer(a + eps * u) - steer(a - eps * u)) / (2 * eps)
    # Central differences: eps² of the third derivative, 1e-15/eps = 1e-9 of rounding.
    assert (slope - expected).abs().max() < 1e-7
    v = activations(3, seed=9)
    pulled = torch.func.grad(lambda x: (steer(x) * v).sum())(a)
    assert float((pulled * u).sum()) == pytest.approx(float((slope * v).sum()), rel=1e-9)
    by_row = torch.func.vmap(steer)(a)
    torch.testing.assert_close(by_row, steer(a), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ALL_METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_change_no_number_and_leave_nothing_behind(name, mode):
    a, T = activations(3, dtype=torch.float32), taken(name, 1.5)
    expected = fitted(name).steer(a, T=T)
    method = METHODS[name]()  # fresh: whatever it computes once, it computes inside the mode
    with mode():
        inside = method.steer(activations(3, dtype=torch.float32), T=T)
        method.steer(a.double(), T=T)
        assert torch.equal(inside, expected)
    for x in (a.clone().requires_grad_(), a.double().requires_grad_()):
        method.steer(x, T=T).sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.norm() > 0


@pytest.mark.parametrize("name", ALL_METHODS)
def test_no_fit_reads_or_moves_the_global_generators(name):
    bytes_of = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed)
        before = (torch.get_rng_state(), np.random.get_state()[1].tobytes())
        method = METHODS[name]()
        bytes_of.append(method.steer(activations(3, dtype=torch.float32), T=taken(name, 1.5)).numpy().tobytes())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tobytes() == before[1]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize(
    "recipe_of",
    [
        lambda seed: Polynomial(rank=9, seed=seed),
        lambda seed: PolynomialSketch(60, seed=seed),
        lambda seed: RandomFourier(40, seed=seed),
    ],
)
def test_the_seed_of_the_features_is_the_only_chance(recipe_of):
    a = activations(3, dtype=torch.float32)
    same, again, other = (ODESteer.fit(planted(), features=recipe_of(s)).steer(a, T=1.5) for s in (4, 4, 5))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_random_directions_are_unit_and_by_seed():
    first, again, other = (RandomDirection.fit(planted(), seed=s).direction for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.norm()) == pytest.approx(1, abs=1e-6)  # float32
    flipped = planted()
    swapped = RandomDirection.fit(type(flipped)(flipped.undesired, flipped.desired), seed=0).direction
    assert torch.equal(first, swapped)  # it knows nothing of the two sides


def test_caa_adds_the_difference_of_means():
    acts, a = planted(), activations(4, dtype=torch.float32)
    vector = acts.desired.mean(0) - acts.undesired.mean(0)
    torch.testing.assert_close(CAA.fit(acts).steer(a, T=1.7), a + 1.7 * vector, rtol=0, atol=2e-6)  # float32


def shifted_gaussians(n: int, seed: int = 0) -> tuple[ContrastiveActivations, torch.Tensor, torch.Tensor]:
    """(acts, δ, Σ⁻¹δ): Gaussians of one covariance Σ, of deviations from .5 to 2, whose means are δ apart."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator))[0]
    spread, delta = torch.linspace(0.5, 2, D_MODEL), torch.randn(D_MODEL, generator=generator) / D_MODEL**0.5
    sides = torch.randn(2, n, D_MODEL, generator=generator) * spread @ turn.T + 3
    return ContrastiveActivations(sides[0] + delta, sides[1]), delta, turn @ (turn.T @ delta / spread.square())


def test_caa_finds_a_planted_shift():
    acts, delta, _ = shifted_gaussians(4000)
    found = CAA.fit(acts).vector_field(activations(1, dtype=torch.float32))[0]
    # The error of the difference of two means of 4,000: √(2 tr Σ/n) = .15 in length on average.
    assert float((found - delta).norm()) < 0.2 < 0.5 < float(delta.norm())


def test_iti_finds_the_planted_direction_that_parts_two_gaussians():
    """Not δ, which parts them worse: the true log ratio is (Σ⁻¹δ)ᵀa + const."""
    acts, delta, best = shifted_gaussians(4000)
    found = ITI.fit(acts).vector_field(activations(1, dtype=torch.float32))[0]
    assert float(torch.cosine_similarity(found, best, dim=0)) > 0.97 > 0.9 > torch.cosine_similarity(delta, best, dim=0)


def test_iti_adds_the_unit_direction_of_its_probe():
    acts, a = planted(), activations(4, dtype=torch.float32)
    method = ITI.fit(acts)
    theta = method.barrier.grad(a)[0]
    assert torch.equal(method.barrier.grad(a), theta.expand_as(a))
    torch.testing.assert_close(method.steer(a, T=1.7), a + 1.7 * theta / theta.norm(), rtol=0, atol=2e-6)
    assert float(theta @ (acts.desired.mean(0) - acts.undesired.mean(0))) > 0


def test_step_odesteer_is_odesteer_with_one_step():
    acts, a = planted(), activations(4)
    assert torch.equal(StepODESteer.fit(acts).steer(a, T=2.0), ODESteer.fit(acts, steps=1).steer(a, T=2.0))
    step = StepODESteer.fit(acts)
    torch.testing.assert_close(step.steer(a, T=2.0), a + 2.0 * step.vector_field(a), rtol=0, atol=1e-13)


def test_more_steps_tend_to_the_flow():
    acts, a = planted(), activations(4)
    ends = [ODESteer.fit(acts, features=RECIPES["polynomial-2-curved"], steps=n).steer(a, T=2.0) for n in (1, 10, 100)]
    exact = ODESteer.fit(acts, features=RECIPES["polynomial-2-curved"], solver="rk4", steps=100).steer(a, T=2.0)
    errors = [float((end - exact).norm(dim=-1).max()) for end in ends]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0  # Euler: each factor of 10 in steps gives about 10


def test_odesteer_without_features_is_the_papers_kernel():
    acts, a = planted(), activations(4)
    named = ODESteer.fit(acts, features=Polynomial(degree=2, gamma=0.1, coef0=1.0), steps=10, solver="euler", tol=1e-5)
    assert torch.equal(ODESteer.fit(acts).steer(a, T=2.0), named.steer(a, T=2.0))


def test_swapping_the_sides_turns_steering_round():
    acts, a = planted(), activations(4)
    swapped = type(acts)(acts.undesired, acts.desired, layer=3)
    for method in (ODESteer, StepODESteer, CAA, ITI):
        v, w = method.fit(acts).vector_field(a), method.fit(swapped).vector_field(a)
        # Two lbfgs runs stop at different points of a flat loss: their tolerance of the gradient is 1e-5 to 1e-4.
        assert (v + w).norm(dim=-1).max() <= 2e-2 * v.norm(dim=-1).max()
        torch.testing.assert_close(
            method.fit(acts).steer(a, T=-1.0),
            method.fit(swapped).steer(a, T=1.0),
            rtol=0,
            atol=0.1 * float((method.fit(acts).steer(a, T=1.0) - a).norm(dim=-1).max()),
        )


@pytest.mark.parametrize("unit_speed", [True, False])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_autograd_and_a_gradient_by_hand_give_the_same_flow(unit_speed, solver):
    class ByHand(Own):
        def grad(self, a):
            bell = 1 - torch.tanh(a[..., 0] - 0.5 * a[..., 1]).square()
            g = -0.1 * a * torch.cos(a[..., 2:3])
            push = torch.zeros_like(a)
            push[..., 0], push[..., 1] = bell, -0.5 * bell
            push[..., 2] = 0.05 * (a.square().sum(-1) - 20) * torch.sin(a[..., 2])
            return g + push

    a = activations(5)
    ends = [
        GradientFlow(barrier, steps=5, solver=solver, unit_speed=unit_speed).steer(a, T=0.5)
        for barrier in (Own(), ByHand())
    ]
    assert (ends[0] - ends[1]).abs().max() < 1e-12  # float64
    assert (ends[0] - a).norm(dim=-1).min() > 0.1


def test_a_module_is_a_barrier_and_stays_where_it_is():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.first = torch.nn.Parameter(0.3 * torch.randn(D_MODEL, 16, generator=generator))
            self.second = torch.nn.Parameter(torch.randn(16, generator=generator))

        def value(self, a):
            return torch.tanh(a @ self.first) @ self.second

    net = Net()
    method = GradientFlow(net, layer=2)
    a = activations(4)
    end = method.steer(a, T=1.0)
    assert net.first.dtype == torch.float32  # the float64 copy is the method's own
    assert (net.double().value(end) > net.value(a) + 0.1).all()


def test_a_gradient_flow_takes_its_layer_from_its_origin():
    acts = planted(layer=5)
    assert GradientFlow(Own(), origin=acts.origin).layer == 5
    assert GradientFlow(Own(), origin=acts.origin, layer=2).origin.layer == 2
    assert GradientFlow(Own()).layer is None
    assert GradientFlow(Own(), layer=4).to(dtype=torch.float64).layer == 4


@pytest.mark.parametrize(
    "name", ["odesteer", "stepodesteer", "caa", "iti", "randomdirection", "repe", "linearact", "mimic"]
)
def test_fitted_methods_remember_where_their_numbers_are_valid(name):
    origin = fitted(name).origin
    assert (origin.d_model, origin.layer, origin.hook_name) == (D_MODEL, 3, "blocks.3.hook_resid_post")
    assert (origin.model_name, origin.processing) == ("planted", "raw")
    norms = torch.cat([planted().desired, planted().undesired]).norm(dim=1)
    assert origin.typical_norm == pytest.approx(float(norms.median()), rel=1e-6)
