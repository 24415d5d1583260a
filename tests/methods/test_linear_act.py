"""Linear-AcT is the least-squares line through joined quantiles, a gradient flow, and with parity the port's."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from instances import activations, in_float64, planted, without_shape_checks

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.methods import LinearAcT

DATA = Path(__file__).parents[1] / "fixtures"


def gaussians(n_desired, n_undesired, d_model=8, seed=0):
    """(acts, ω, β) of independent normal coordinates, each with means and spreads of its own: T = ωx + β is optimal."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(2, d_model, generator=generator, dtype=torch.float64)
    spreads = 0.3 + 2 * torch.rand(2, d_model, generator=generator, dtype=torch.float64)
    sides = [
        mean + spread * torch.randn(n, d_model, generator=generator, dtype=torch.float64)
        for mean, spread, n in zip(means, spreads, (n_desired, n_undesired), strict=True)
    ]
    omega = spreads[0] / spreads[1]
    return ContrastiveActivations(*sides, layer=3), omega, means[0] - omega * means[1]


@pytest.mark.parametrize("match", ["quantiles", "moments"])
@pytest.mark.parametrize("sizes", [(4000, 4000), (6000, 4000), (4000, 6000)])
def test_normal_coordinates_give_the_ratio_of_their_spreads(match, sizes):
    acts, omega, beta = gaussians(*sizes)
    method = LinearAcT.fit(acts, match=match)
    # Each spread is known to 1/√(2n) = 1.1 %, their ratio to 1.6 %: four of those.
    assert ((method.omega / omega).log().abs() < 0.065).all()
    assert ((method.beta - beta).abs() < 0.065 * (1 + beta.abs() + omega * 6)).all()


@pytest.mark.parametrize("sizes", [(7, 7), (6, 4), (4, 6), (7, 5), (2, 9)])
def test_the_plan_is_the_optimal_one_for_any_sizes(sizes):
    """The oracle repeats every row until both sides have as many, and joins the sorted ones: exact in rationals."""
    acts = planted(*sizes, d_model=3)
    method = in_float64(LinearAcT.fit(acts))
    for j in range(3):
        s, t = ([Fraction(float(x)) for x in side[:, j]] for side in (acts.undesired, acts.desired))
        low, high = sum(s) / len(s), sum(t) / len(t)
        both = list(zip(sorted(s * len(t)), sorted(t * len(s)), strict=True))
        omega = sum((x - low) * (y - high) for x, y in both) / sum((x - low) ** 2 for x, _ in both)
        assert float(method.omega[j]) == pytest.approx(float(omega), abs=1e-6)  # kept in float32
        assert float(method.beta[j]) == pytest.approx(float(high - omega * low), abs=1e-6)


def test_the_transport_cost_is_that_of_an_optimal_transport_library():
    ot = pytest.importorskip("ot")
    from odesteer_tl.methods.linear_act import _covariance

    acts = planted(9, 6, d_model=4)
    source, target = acts.undesired.double(), acts.desired.double()
    centred = source - source.mean(0), target - target.mean(0)
    cost = centred[0].square().mean(0) + centred[1].square().mean(0) - 2 * _covariance(*centred)
    expected = torch.tensor([float(ot.emd2_1d(s.numpy(), t.numpy())) for s, t in zip(*(c.T for c in centred))])  # noqa: B905
    torch.testing.assert_close(cost, expected.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("match", ["quantiles", "moments", "means"])
def test_the_mapped_sample_has_the_mean_and_with_moments_the_spread_of_the_desired(match):
    acts = planted()
    mapped = LinearAcT.fit(acts, match=match).steer(acts.undesired.double(), T=1.0)
    wanted = acts.desired.double()
    torch.testing.assert_close(mapped.mean(0), wanted.mean(0), rtol=0, atol=1e-6)  # ω and β are float32
    if match == "moments":
        torch.testing.assert_close(mapped.std(0, correction=0), wanted.std(0, correction=0), rtol=1e-6, atol=0)


def test_the_means_alone_are_caa():
    acts, a = planted(), activations(4)
    shift = acts.desired.double().mean(0) - acts.undesired.double().mean(0)
    method = LinearAcT.fit(acts, match="means")
    assert (method.omega == 1).all()
    torch.testing.assert_close(method.steer(a, T=0.4), a + 0.4 * shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [(60, 45), (45, 60), (50, 50)])
def test_no_order_of_the_rows_matters(sizes):
    acts = planted(*sizes)
    turned = ContrastiveActivations(acts.desired.flip(0), acts.undesired.flip(0), layer=3)
    weights = [LinearAcT.fit(each).barrier.weight for each in (acts, turned)]
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)
    if sizes[0] != sizes[1]:
        weights = [LinearAcT.fit(each, parity=True).barrier.weight for each in (acts, turned)]
        assert float((weights[0] - weights[1]).norm()) > 0.1  # the port leaves out other rows
    else:
        weights = [LinearAcT.fit(acts, parity=parity).barrier.weight for parity in (False, True)]
        torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)


def test_strength_goes_straight_from_the_activation_to_the_map():
    method, a = in_float64(LinearAcT.fit(planted())), activations(5)
    mapped = method.omega * a + method.beta
    assert method.steer(a, T=0) is a
    for T in (0.25, 0.5, 1.0):
        torch.testing.assert_close(method.steer(a, T=T), (1 - T) * a + T * mapped, rtol=0, atol=1e-13)
    torch.testing.assert_close(method.vector_field(a), mapped - a, rtol=0, atol=1e-13)
    assert method.speed is None


def test_the_map_less_the_identity_is_the_gradient_of_h():
    method, a = in_float64(LinearAcT.fit(planted())), activations(5).requires_grad_()
    (slope,) = torch.autograd.grad(method.barrier.value(a).sum(), a)
    torch.testing.assert_close(slope, method.steer(a, T=1.0) - a, rtol=0, atol=1e-12)
    acts = planted()
    means = torch.stack([acts.desired.double().mean(0), acts.undesired.double().mean(0)])
    h = method.barrier.value(means)
    assert float(h.sum()) == pytest.approx(0, abs=1e-4) and h[0] > h[1]  # float32 weights of squares around 10


def test_a_constant_coordinate_is_shifted():
    acts = planted()
    undesired = acts.undesired.clone()
    undesired[:, 2] = 0.1
    acts = ContrastiveActivations(acts.desired, undesired, layer=3)
    wanted = acts.desired[:, 2].double().mean()
    for match in ("quantiles", "moments"):
        method = LinearAcT.fit(acts, match=match)
        assert float(method.omega[2]) == 1 and torch.isfinite(method.barrier.weight).all()
        assert float(method.beta[2]) == pytest.approx(float(wanted) - 0.1, abs=1e-6)
    port = LinearAcT.fit(acts, parity=True)
    assert float(port.omega[2]) == pytest.approx(0, abs=1e-5)  # all are set to one value


def test_parity_with_the_released_code():
    with np.load(DATA / "reference.npz") as inputs, np.load(DATA / "reference_maps.npz") as stored:
        acts = ContrastiveActivations(*(torch.from_numpy(inputs[side]) for side in ("desired", "undesired")))
        x = torch.from_numpy(inputs["x"])
        omega, beta, mapped = (torch.from_numpy(stored[f"linact_{key}"]) for key in "wbx")
    method = LinearAcT.fit(acts, parity=True)
    for got, expected in ((method.omega, omega), (method.beta, beta), (method.steer(x, T=1.0), mapped)):
        assert float((got - expected).abs().max()) <= 1e-5
    whole = LinearAcT.fit(acts)
    assert float((whole.omega - omega).abs().max()) > 0.01  # 30 of the 180 desired rows are not in the port's


def test_equal_fits_have_equal_bytes():
    first, again = (LinearAcT.fit(planted()).barrier.weight.numpy().tobytes() for _ in range(2))
    assert first == again


@pytest.mark.parametrize(("desired", "undesired"), [(1, 5), (5, 1)])
def test_too_few_samples_are_refused(desired, undesired):
    message = f"LinearAcT needs at least 2 desired and 2 undesired activations, got {desired} and {undesired}"
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        LinearAcT.fit(planted(n_desired=desired, n_undesired=undesired))


def test_another_match_is_refused():
    with without_shape_checks():
        with pytest.raises(ValueError, match=r'match must be "quantiles", "moments" or "means", got \'median\''):
            LinearAcT.fit(planted(), match="median")
        with pytest.raises(ValueError, match=r"parity=True is the released code, .* got match='means'"):
            LinearAcT.fit(planted(), match="means", parity=True)


@pytest.mark.parametrize("match", ["quantiles", "moments"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_coordinate_that_is_constant_but_for_rounding_is_shifted_only(match, dtype):
    """300.3 read in two batches: the nearest number of the dtype, or the next one."""
    acts = planted(40, 30)
    desired, undesired = acts.desired.to(dtype), acts.undesired.to(dtype)
    value = torch.tensor(300.3).to(dtype)
    undesired[:, 2] = value
    undesired[::2, 2] = torch.nextafter(value, torch.tensor(torch.inf, dtype=dtype)) if dtype != torch.bfloat16 else 302
    method = LinearAcT.fit(ContrastiveActivations(desired, undesired), match=match)
    assert float(method.omega[2]) == 1
    shift = desired[:, 2].double().mean() - undesired[:, 2].double().mean()
    assert float(method.beta[2]) == pytest.approx(float(shift), rel=1e-6)
