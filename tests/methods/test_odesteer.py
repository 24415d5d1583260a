"""ODESteer and StepODESteer: their steps, their kernel, their sides."""

import torch
from instances import (
    RECIPES,
    activations,
    planted,
)

from odesteer_tl.flows.features import Polynomial
from odesteer_tl.methods import CAA, ITI, ODESteer, StepODESteer

AT = {"headshift": "z"}
"""Methods that were not fitted at `resid_post`."""

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


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
