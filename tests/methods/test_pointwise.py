"""The laws of `steer`, `vector_field`, `trajectory` and `edits`, over every method."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import (
    ALL_METHODS,
    BY_NORM,
    D_MODEL,
    SPHERICAL,
    activations,
    fitted,
    log_ratio,
    planted,
    strengths,
    taken,
)

from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.sites import Site
from odesteer_tl.remote.payloads import moved

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
def test_shape_dtype_and_device_are_kept(name, dtype):
    for batch in [(), (4,), (2, 3)]:
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


@pytest.mark.parametrize(
    "name", ["odesteer", "stepodesteer", "caa", "iti", "randomdirection", "repe", "linearact", "mimic"]
)
def test_fitted_methods_remember_where_their_numbers_are_valid(name):
    origin = fitted(name).origin
    assert (origin.d_model, origin.layer, origin.hook_name) == (D_MODEL, 3, "blocks.3.hook_resid_post")
    assert (origin.model_name, origin.processing) == ("planted", "raw")
    norms = torch.cat([planted().desired, planted().undesired]).norm(dim=1)
    assert origin.typical_norm == pytest.approx(float(norms.median()), rel=1e-6)
