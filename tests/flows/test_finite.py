"""Finite activations stay finite and go where a plain integration in float64 goes, from ‖a‖ = 0 to 1e19."""

import pytest
import torch
from instances import (
    ALL_METHODS,
    ALL_SOLVERS,
    D_MODEL,
    SOLVERS,
    activations,
    fitted,
    in_float64,
    log_ratio,
    planted,
    strengths,
    taken,
    with_queries,
    without_shape_checks,
)
from torch.utils._python_dispatch import TorchDispatchMode

from odesteer_tl import _memory
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear
from odesteer_tl.flows.fields import UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods import CAA, HPR, ITI, ODESteer, REControl, TruthFlow
from odesteer_tl.portable.edits import State
from odesteer_tl.portable.feedback import Feedback, linear_quadratic

NORMS = [1e-8, 1e-3, 1.0, 1e4, 1e12, 1e19]


def integrated(barrier, a, T, solver, steps=10):
    """a(T) [n, d_model] of ȧ = ∇h/‖∇h‖ by the textbook's step and the automatic derivative of h, row by row."""

    def v(x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(barrier.value(x), x)
        length = torch.linalg.vector_norm(g / g.abs().max().clamp_min(1e-300)) * g.abs().max()
        return g / length.clamp_min(1e-300)

    rows = []
    for x, time in zip(a, T, strict=True):
        dt = time / steps
        for _ in range(steps):
            k1 = v(x)
            if solver == "euler":
                x = x + dt * k1
            elif solver == "midpoint":
                x = x + dt * v(x + dt / 2 * k1)
            else:
                k2 = v(x + dt / 2 * k1)
                k3 = v(x + dt / 2 * k2)
                x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + v(x + dt * k3))
        rows.append(x.detach())
    return torch.stack(rows)


SAMPLE = ["polynomial-2-curved", "polynomial-3-curved", "polynomial-3-low-rank", "sketch-2-unit", "fourier-unit"]
SAMPLE += ["linear-raw", "polynomial-3-raw", "sketch-3-raw"]


@pytest.mark.parametrize("solver", ALL_SOLVERS)
@pytest.mark.parametrize("name", SAMPLE)
def test_at_every_norm_a_flow_in_float32_is_that_of_a_plain_integration(name, solver):
    barrier = in_float64(log_ratio(name))
    ways = torch.nn.functional.normalize(activations(len(NORMS) + 1), dim=-1)
    sizes = torch.tensor([*NORMS, 0.0], dtype=torch.float64)
    a = ways * sizes.unsqueeze(-1)
    T = torch.where(sizes > 0, 0.5 * sizes, 1.0)
    expected = integrated(barrier, a, T, solver)
    for coordinates in ("direct", "reduced") if barrier.reduced() is not None else ("direct",):
        flow = Flow(UnitGradient(log_ratio(name)), SOLVERS[solver], 10, coordinates)
        gap = (flow(a.float(), T.float()).double() - expected).norm(dim=-1)
        assert (gap <= 2e-3 * T).all(), (coordinates, gap / T)  # of raw cubic features terms of 1e3 cancel


@pytest.mark.parametrize(("solver", "share"), [("euler", 0.1), ("midpoint", 0.0), ("rk4", 0.05)])
@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_on_a_linear_h_of_the_direction_a_zero_activation_takes_one_step_to_the_pole(solver, share, size):
    """There ∇h = 0. Euler's first step ends on it; midpoint asks there; of rk4's four slopes, (1 + 0 + 2 + 0)/6."""
    method = ODESteer.fit(planted(), features=Linear(), solver=solver)
    w = torch.nn.functional.normalize(method.barrier.weight, dim=0)
    a = size * torch.nn.functional.normalize(activations(2, dtype=torch.float32), dim=-1)
    for T in (1.0, 1e-8, -3.0):
        torch.testing.assert_close(method.steer(a, T=T), (share * T * w).expand(2, -1), rtol=1e-5, atol=1e-6 * abs(T))


@pytest.mark.parametrize("name", ALL_METHODS)
def test_what_is_zero_ends_finite_and_relative_strength_leaves_it(name):
    method, a = fitted(name), torch.zeros(3, D_MODEL)
    rows = torch.tensor([1.0, 0.0, -2.0])
    for where in (method, method.portable()):
        for strength in strengths(name, {"T": 1.0}, {"T": -1.0}, {"T": rows}):
            assert torch.isfinite(where.steer(a, **strength)).all()
        assert torch.equal(where.steer(a, T=taken(name, rows))[1], a[1])
        for strength in strengths(name, {"relative_T": 0.7}, {"relative_T": rows}):
            assert torch.equal(where.steer(a, **strength), a)


def test_a_raw_linear_h_moves_a_zero_activation_along_its_weight():
    method = ITI.fit(planted())
    w = torch.nn.functional.normalize(method.barrier.weight, dim=0)
    torch.testing.assert_close(method.steer(torch.zeros(D_MODEL), T=2.0), 2 * w)


@pytest.mark.parametrize("length", [1e-18, 1e-21, 1e-24, 1e-37])
def test_a_slope_whose_squares_vanish_is_no_faster_than_others(length):
    w, a = torch.nn.functional.normalize(activations(dtype=torch.float32), dim=0), activations(3, dtype=torch.float32)
    for normalize in (True, False):
        speed = UnitGradient(LogRatioBarrier(Linear(normalize), length * w, 0.0))(a).norm(dim=-1)
        assert (speed <= 1 + 1e-5).all() and ((speed >= 1 - 1e-3).all() or (normalize and length < 1e-18))


def halves(dtype=torch.float16):
    return activations(2, dtype=dtype)


@pytest.mark.parametrize("name", ["odesteer", "caa", "truthflow", "mimic"])
def test_a_strength_that_the_dtype_cannot_hold_is_refused(name):
    method = fitted(name)
    message = r"T = 1e\+06 does not fit float16 \(largest 65504\)"
    rows = torch.tensor([1.0, -1e6])
    for where in (method, method.portable()):
        for strength in ({"T": 1e6}, {"T": rows}, {"relative_T": -1e6}, {"relative_T": rows}):
            with pytest.raises(ValueError, match=message):
                where.steer(halves(), **strength)
            (edit,) = where.edits(**strength)
            with pytest.raises(ValueError, match=message):
                edit.apply(halves(), halves(), State(torch.arange(2)))
        assert torch.isfinite(where.steer(halves(torch.bfloat16), T=1e6)).all()
    with pytest.raises(ValueError, match=r"T = 1e\+20 does not fit float32 \(largest 1\.8447e\+19\)"):
        method.steer(halves(torch.float32), T=1e20)
    if name == "odesteer":
        with pytest.raises(ValueError, match=message):
            method.trajectory(halves(), T=1e6)


def test_a_loop_refuses_it_too():
    directions = torch.eye(D_MODEL)[:1].unsqueeze(0)
    edit = Feedback(linear_quadratic, (directions, torch.ones(1, 1), directions), (0,), D_MODEL).edits(1e6)[0]
    with pytest.raises(ValueError, match=r"T = 1e\+06 does not fit float16"):
        edit.apply(halves(), halves(), State(torch.arange(2)))
    assert torch.isfinite(edit.apply(halves(torch.float32), halves(torch.float32), State(torch.arange(2)))).all()


def test_what_float16_cannot_hold_ends_at_its_largest_number():
    method = CAA.fit(planted())
    with pytest.warns(UserWarning, match="reached the largest number of float16, 65504"):
        out = method.steer(halves(), T=60_000.0)
    expected = (halves().float() + 60_000 * method.barrier.weight).clamp(-65_504, 65_504).half()
    assert torch.equal(out, expected) and (out.abs() == 65_504).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_map_that_leaves_the_dtype_ends_at_its_largest_number(dtype):
    """TruthFlow's vector grows with ‖a‖, and so does T by relative_T: 1e19 · 44 · 1e19 is more than float32 holds."""
    a = 1e4 * halves() if dtype == torch.float16 else (1e18 * activations(2)).to(dtype)
    for name in ("truthflow", "mimic-ungated", "linearact"):
        for where in (fitted(name), fitted(name).portable()):
            for strength in ({"relative_T": 6e4}, {"T": torch.full((2,), 6e4 if dtype == torch.float16 else 1e19)}):
                out = where.steer(a, **strength)
                assert torch.isfinite(out).all()
                if name == "truthflow" and "relative_T" in strength:
                    assert (out.abs() == torch.finfo(dtype).max).any()


class Reads(TorchDispatchMode):
    """Counts what the host reads of a tensor, which waits for a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        Reads.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_step_of_an_edit_waits_for_the_device(dtype):
    a, state = activations(2, dtype=dtype), State(torch.arange(2))
    for name in ("odesteer", "caa", "mimic"):
        for strength in ({"T": torch.tensor([1.0, 2.0])}, {"relative_T": 0.2}):
            (edit,) = fitted(name).edits(**strength)
            Reads.count = 0
            with Reads():
                edit.apply(a, a, state)
            assert Reads.count == 0


@pytest.mark.parametrize("fit", [HPR.fit, TruthFlow.fit, REControl.fit])
def test_a_network_that_does_not_fit_the_memory_is_refused_before_it_is_made(fit, monkeypatch):
    monkeypatch.setattr(_memory, "room", lambda device: 1_000)
    with without_shape_checks(), pytest.raises(ValueError, match=r"Training the .* needs .* bytes .* 1,000: fit ODES"):
        fit(with_queries())


def test_the_room_of_this_machine_is_known_to_be_some():
    assert _memory.room(torch.device("cpu")) is None or _memory.room(torch.device("cpu")) > 2**28
    _memory.check_room(2**20, torch.device("cpu"), "This", "never said.")
