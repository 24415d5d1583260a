"""HPR by its own formulas: the reflection, the rotation, and what a fit recovers of a planted plane and angle."""

import math
from dataclasses import replace

import pytest
import torch
from instances import activations, fitted, planted, without_shape_checks

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear
from odesteer_tl.flows.networks import Network
from odesteer_tl.methods import HPR
from odesteer_tl.portable.networks import angle_between

D, ANGLE = 16, 1.0


def pairs(n: int = 1500, seed: int = 0) -> tuple[ContrastiveActivations, torch.Tensor]:
    """Undesired: 0.2 to 0.6 rad below a plane. Desired: the same, turned by ANGLE in the plane of a and θ."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.functional.normalize(activations(d_model=D, dtype=torch.float32), dim=0)
    along = torch.randn(n, D, generator=generator)
    along = torch.nn.functional.normalize(along - (along @ theta).unsqueeze(1) * theta, dim=1)
    below = 0.2 + 0.4 * torch.rand(n, 1, generator=generator)
    length = 4 + torch.rand(n, 1, generator=generator)
    sides = [length * (torch.cos(t) * along + torch.sin(t) * theta) for t in (ANGLE - below, -below)]
    return ContrastiveActivations(*sides, layer=2, paired=True), theta


@pytest.fixture(scope="module")
def recovered() -> HPR:
    return HPR.fit(pairs()[0], epochs=28)


def by_hand(angle: float | None = None, dtype=torch.float64) -> HPR:
    """A method with a random plane and the constant angle given, or angles that vary with a."""
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(D, generator=generator, dtype=torch.float64)
    weights = (0.2 * torch.randn(8, D, generator=generator), torch.randn(1, 8, generator=generator))
    biases = (torch.randn(8, generator=generator), torch.zeros(1))
    if angle is not None:
        odds = torch.tensor([angle / math.pi], dtype=torch.float64).logit()
        weights, biases = (torch.zeros(1, D),), (odds,)
    net = Network(tuple(w.to(dtype) for w in weights), tuple(b.to(dtype) for b in biases), "gelu")
    return HPR(LogRatioBarrier(Linear(normalize=False), theta.to(dtype), 0.0), net, Origin(d_model=D, layer=1))


def reflection(a, theta):
    return a - 2 * theta * (a @ theta).unsqueeze(-1) / (theta @ theta)


def test_a_planted_plane_is_recovered(recovered):
    theta = recovered.barrier.weight
    assert float(torch.nn.functional.cosine_similarity(theta, pairs()[1], dim=0)) >= 0.98
    unseen = pairs(seed=1)[0]
    assert (recovered.barrier.value(unseen.desired) > 0).double().mean() > 0.97
    assert (recovered.barrier.value(unseen.undesired) < 0).double().mean() > 0.97


def test_a_planted_angle_is_recovered(recovered):
    unseen = pairs(seed=1)[0]
    assert float((recovered.angle(unseen.undesired) - ANGLE).abs().mean()) < 0.1
    assert float(recovered.angle(unseen.desired).mean()) < 0.1


def test_steering_carries_a_planted_activation_to_its_pair(recovered):
    unseen = pairs(seed=1)[0]
    away = angle_between(recovered.steer(unseen.undesired, T=1.0), unseen.desired)
    assert float(away.median()) < 0.25 < 0.9 < float(angle_between(unseen.undesired, unseen.desired).median())


def test_the_published_formula():
    method, a = by_hand(), activations(50, d_model=D)
    theta = method.barrier.weight
    mirrored, gamma1 = reflection(a, theta), method.angle(a).unsqueeze(-1)
    gamma2 = angle_between(a, mirrored).unsqueeze(-1)
    for T in (1.0, 0.4, -0.7, 2.5):
        turned = (torch.sin(T * gamma1) * mirrored + torch.sin(gamma2 - T * gamma1) * a) / torch.sin(gamma2)
        expected = torch.where((a @ theta).unsqueeze(-1) < 0, turned, a)
        assert (method.steer(a, T=T) - expected).abs().max() < 1e-12  # float64, γ₂ not small
    assert gamma1.std() > 0.05


@pytest.mark.parametrize("T", [0.3, 1.0, -2.0, 40.0])
@pytest.mark.parametrize("make", [by_hand, lambda: fitted("hpr")])
def test_the_norm_is_kept(make, T):
    a = activations(200, d_model=make().origin.d_model, dtype=torch.float32)
    gap = make().steer(a, T=T).norm(dim=-1) / a.norm(dim=-1) - 1
    assert gap.abs().max() < 1e-5


def test_the_angle_of_the_mirror_image_is_the_reflection_and_no_angle_the_identity():
    a = activations(40, d_model=D)
    theta = by_hand().barrier.weight
    a = a[(a @ theta) < 0]
    for row in a[:5]:
        gamma2 = float(angle_between(row, reflection(row, theta)))
        assert (by_hand(gamma2).steer(row, T=1.0) - reflection(row, theta)).abs().max() < 1e-12
    assert (by_hand(1e-300).steer(a, T=1.0) - a).abs().max() < 1e-12
    assert by_hand(0.5).steer(a, T=0) is a
    angle = angle_between(a, by_hand(0.5).steer(a, T=0.5))
    torch.testing.assert_close(angle, torch.full_like(angle, 0.25), rtol=1e-9, atol=0)  # T scales the angle


def test_desired_activations_stay_bit_for_bit():
    method, a = by_hand(dtype=torch.float32), activations(100, d_model=D, dtype=torch.float32)
    desired = method.barrier.value(a) >= 0
    out = method.steer(a, T=1.3)
    assert torch.equal(out[desired], a[desired]) and desired.sum() > 20
    assert (out - a)[~desired].norm(dim=-1).min() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_mirror_angle_are_finite(dtype):
    method = by_hand(1.0, dtype)
    theta = method.barrier.weight
    across = activations(d_model=D, seed=2, dtype=dtype)
    across = across - theta * (across @ theta) / (theta @ theta)
    against, beside = -3 * theta, across - 1e-5 * theta
    assert torch.equal(method.steer(against, T=1.0), against)  # it has no plane to be turned in
    out = method.steer(torch.stack([beside, -theta + 1e-3 * across, torch.zeros_like(theta)]), T=1.0)
    assert torch.isfinite(out).all() and torch.equal(out[2], torch.zeros_like(theta))
    ahead = math.cos(1.0) * across + math.sin(1.0) * across.norm() * theta / theta.norm()
    assert (out[0] - ahead).norm() < 1e-3 * across.norm()  # γ₂ → 0: the way is that of θ
    assert float(out[1].norm() / (-theta + 1e-3 * across).norm()) == pytest.approx(1, abs=1e-5)


def test_a_trajectory_is_the_arc():
    method, a = by_hand(), activations(6, d_model=D)
    trajectory = method.trajectory(a, T=torch.linspace(-1, 1, 6))
    assert trajectory.activations.shape == (11, 6, D) and trajectory.h.shape == (11, 6)
    for k in (0, 4, 10):
        expected = method.steer(a, T=torch.linspace(-1, 1, 6) * k / 10)
        torch.testing.assert_close(trajectory.activations[k], expected, rtol=0, atol=1e-6)
    assert not trajectory.chatters.any()


def test_one_seed_gives_identical_bytes_and_another_does_not():
    acts = replace(planted(40, 40), paired=True)
    first, again, other = (HPR.fit(acts, epochs=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.barrier.weight, again.barrier.weight)
    assert all(torch.equal(x, y) for x, y in zip(first.angles.weights, again.angles.weights, strict=True))
    assert not torch.equal(first.barrier.weight, other.barrier.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_fit_takes_any_float_type_and_scale(dtype):
    acts = replace(planted(40, 40), paired=True)
    other = replace(acts, desired=64 * acts.desired.to(dtype), undesired=64 * acts.undesired.to(dtype))
    method, a = HPR.fit(other, epochs=2), activations(5)
    assert method.barrier.weight.dtype == torch.float32 == method.angles.weights[0].dtype
    if dtype == torch.float64:  # other units, the same method; a power of two does not round
        torch.testing.assert_close(method.steer(64 * a, T=1.0) / 64, HPR.fit(acts, epochs=2).steer(a, T=1.0))


def test_what_cannot_be_fitted_says_what_to_do():
    with pytest.raises(ValueError, match=r"not paired: .* pass paired=True"):
        HPR.fit(planted(40, 40))
    with pytest.raises(ValueError, match=r"HPR needs rows to fit .* 2 desired and 2 undesired"):
        HPR.fit(replace(planted(2, 2), paired=True))
    with without_shape_checks(), pytest.raises(ValueError, match="fitted at d_model 24"):
        fitted("hpr").steer(activations(2, d_model=23), T=1.0)
