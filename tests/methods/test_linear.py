"""CAA and ITI: one direction, with its planted answer."""

import pytest
import torch
from instances import (
    D_MODEL,
    activations,
    planted,
)

import odesteer_tl as ot
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.methods import CAA, ITI

AT = {"headshift": "z"}
"""Methods that were not fitted at `resid_post`."""

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("cls", [ot.ITI, ot.ODESteer, ot.StepODESteer, ot.RepE, ot.MiMiC, ot.LinearAcT])
def test_one_sample_is_too_few(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs at least 2 desired and 2 undesired.*got 1 and 45"):
        cls.fit(planted(1, 45))


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
