"""Dtypes, tiny and huge activations, derivatives and modes, over every method."""

import pytest
import torch
from instances import (
    ALL_METHODS,
    D_MODEL,
    METHODS,
    SPHERICAL,
    activations,
    fitted,
    strengths,
    taken,
)

AT = {"headshift": "z"}
"""Methods that were not fitted at `resid_post`."""

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


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
def test_autocast_changes_no_number(name):
    """Products of bfloat16 would be off by 0.4 %, and lose a projection or an angle by as much."""
    a, T = activations(6, dtype=torch.float32), taken(name, 1.5)

    def found(on):
        method = fitted(name).to(dtype=torch.float32)  # a new one: whatever it computes once, it computes inside
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            own = [each.steer(a, T=T) for each in (method, *([] if name.endswith("own") else [method.portable()]))]
            return [*own, method.vector_field(a), method.trajectory(a, T=T).activations]

    for inside, outside in zip(found(True), found(False), strict=True):
        assert inside.dtype == torch.float32 and torch.equal(inside, outside)


@pytest.mark.parametrize("name", ["hpr", "recontrol", "truthflow"])
def test_autocast_changes_no_fit_that_is_trained(name):
    a, T = activations(6, dtype=torch.float32), taken(name, 1.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method = METHODS[name]()
    assert torch.equal(method.steer(a, T=T), METHODS[name]().steer(a, T=T))
