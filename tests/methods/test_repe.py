"""RepE finds a planted direction in the differences of real pairs, with its sign; with parity, what the port finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from instances import D_MODEL, activations, planted, without_shape_checks

from odesteer_tl import _memory
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.methods import RepE

DATA = Path(__file__).parents[1] / "fixtures"


def pairs(n=200, shift=1.0, varying=1.0, seed=0):
    """(acts, u): both of a pair share a text, which varies widely; they differ along the unit vector u."""
    generator = torch.Generator().manual_seed(seed)
    texts = 3 * torch.randn(n, D_MODEL, generator=generator)
    noise = 0.2 * torch.randn(2, n, D_MODEL, generator=generator)
    u = torch.nn.functional.normalize(torch.randn(D_MODEL, generator=generator), dim=0)
    along = (shift + varying * torch.randn(n, 1, generator=generator)) * u
    return ContrastiveActivations(texts + along + noise[0], texts + noise[1], layer=3, paired=True), u


def shuffled(acts, seed=1, paired=None):
    """The same rows, those of the undesired side in another order."""
    order = torch.randperm(len(acts.undesired), generator=torch.Generator().manual_seed(seed))
    paired = acts.paired if paired is None else paired
    return ContrastiveActivations(acts.desired, acts.undesired[order], layer=3, paired=paired)


def test_a_direction_planted_in_pairs_is_found_and_needs_the_pairs():
    acts, u = pairs()
    assert float(RepE.fit(acts).direction @ u) >= 0.99
    assert abs(float(RepE.fit(shuffled(acts)).direction @ u)) < 0.9  # the wrong pairs, said to be pairs
    assert abs(float(RepE.fit(shuffled(acts), parity=True).direction @ u)) < 0.9


def test_a_direction_in_which_all_pairs_differ_alike_is_found_but_not_by_the_port():
    """The port's centring takes out the mean difference, here all there is to find."""
    acts, u = pairs(varying=0.0)
    assert float(RepE.fit(acts).direction @ u) >= 0.99
    assert abs(float(RepE.fit(acts, parity=True).direction @ u)) < 0.6


def test_it_is_what_the_official_reading_tends_to():
    """Members in random order within a pair, differences, recentred, scikit-learn's PCA: our M to order 1/√n."""
    from sklearn.decomposition import PCA

    acts, _ = pairs(n=4000)
    flips = torch.randint(0, 2, (4000, 1), generator=torch.Generator().manual_seed(2)) * 2 - 1
    component = PCA(1, svd_solver="full").fit(((acts.desired - acts.undesired) * flips).numpy()).components_[0]
    assert abs(float(RepE.fit(acts).direction @ torch.from_numpy(component))) >= 0.9999


def test_the_sign_is_that_of_the_desired_side():
    acts, u = pairs(shift=0.2)
    swapped = ContrastiveActivations(acts.undesired, acts.desired, layer=3, paired=True)
    assert float(RepE.fit(acts).direction @ u) > 0.98 and float(RepE.fit(swapped).direction @ u) < -0.98
    for each in (acts, swapped, planted()):
        method = RepE.fit(each)
        projected = [float((side @ method.direction).mean()) for side in (each.desired, each.undesired)]
        assert projected[0] > projected[1]
        h = [float(method.barrier.value(side).mean()) for side in (each.desired, each.undesired)]
        assert h[0] == pytest.approx(-h[1], abs=1e-5) and h[0] > 0  # float32: 0 is halfway between the means


@pytest.mark.parametrize("sizes", [(60, 45), (50, 50)])
def test_unpaired_rows_have_no_order(sizes):
    acts = planted(*sizes)
    first = RepE.fit(acts).direction
    torch.testing.assert_close(RepE.fit(shuffled(acts)).direction, first, rtol=0, atol=1e-6)  # sums in another order
    one, other = (RepE.fit(each, parity=True).direction for each in (acts, shuffled(acts)))
    assert abs(float(one @ other)) < 0.999  # the port's rows do


def test_unpaired_data_gets_every_pair():
    """All n₊·n₋ differences, written out, and their uncentred main direction by another algorithm."""
    acts = planted(n_desired=30, n_undesired=17)
    every = (acts.desired.double().unsqueeze(1) - acts.undesired.double().unsqueeze(0)).reshape(-1, D_MODEL)
    v = torch.linalg.svd(every).Vh[0]
    got = RepE.fit(acts).direction.double()
    assert float((got - v * torch.sign(v @ got)).norm()) < 1e-6


def test_it_adds_a_unit_vector():
    method, a = RepE.fit(planted()), activations(4)
    assert float(method.direction.norm()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(method.steer(a, T=1.7), a + 1.7 * method.direction.double(), rtol=0, atol=1e-14)
    h = method.trajectory(a, T=2.0).h
    torch.testing.assert_close(h[1] - h[0], torch.full((4,), 2.0).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("width", [100, 65_536])
def test_fewer_pairs_than_dimensions_give_the_same_direction(width, paired):
    """By way of a square of the pairs, here; by way of one of the dimensions in the 24 where the rows live."""
    small, _ = pairs(n=40)
    sides = (torch.nn.functional.pad(side, (0, width - D_MODEL)) for side in (small.desired, small.undesired))
    wide = ContrastiveActivations(*sides, paired=paired)
    near = RepE.fit(ContrastiveActivations(small.desired, small.undesired, paired=paired)).direction
    far = RepE.fit(wide).direction
    torch.testing.assert_close(far[:D_MODEL], near, rtol=0, atol=1e-6)
    assert float(far[D_MODEL:].abs().max()) <= 1e-6 and float(far.norm()) == pytest.approx(1, abs=1e-6)
    one, other = (RepE.fit(each, parity=True).direction for each in (small, wide))
    assert abs(float(other[:D_MODEL] @ one)) == pytest.approx(1, abs=1e-6)


def test_squares_that_do_not_fit_the_memory_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(_memory, "room", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"of 106 differences in 24 dimensions needs 18,432 bytes .*fit fewer pairs"):
        RepE.fit(planted())


def test_parity_with_the_released_code_up_to_sign():
    with np.load(DATA / "reference.npz") as inputs, np.load(DATA / "reference_maps.npz") as stored:
        acts = ContrastiveActivations(*(torch.from_numpy(inputs[side]) for side in ("desired", "undesired")))
        expected = torch.from_numpy(stored["repe_vector_unsigned"])
    got = RepE.fit(acts, parity=True).direction
    assert float((got * torch.sign(got @ expected) - expected).abs().max()) <= 1e-5
    assert abs(float(RepE.fit(acts).direction @ expected)) < 0.5  # and it is no direction that the default would take


def test_equal_fits_have_equal_bytes():
    for parity in (False, True):
        first, again = (RepE.fit(planted(), parity=parity).direction.numpy().tobytes() for _ in range(2))
        assert first == again


@pytest.mark.parametrize(("desired", "undesired"), [(1, 5), (5, 1)])
@pytest.mark.parametrize("parity", [False, True])
def test_too_few_samples_are_refused(desired, undesired, parity):
    acts = planted(n_desired=desired, n_undesired=undesired)
    message = f"RepE needs at least 2 desired and 2 undesired activations, got {desired} and {undesired}"
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        RepE.fit(acts, parity=parity)


def test_pairs_that_do_not_differ_are_refused():
    side = planted().desired
    with pytest.raises(ValueError, match="60 desired and 60 undesired activations are the same ones"):
        RepE.fit(ContrastiveActivations(side, side.clone(), paired=True))
    with pytest.raises(ValueError, match=r"differ by the same vector, and parity=True subtracts it: .*parity=False"):
        RepE.fit(ContrastiveActivations(side.double() + 1, side.double(), paired=True), parity=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d_model", [8, 24, 200])
def test_pairs_that_differ_by_one_rounded_vector_are_refused(dtype, d_model):
    """Half a unit in the last place of each number is all that is left when the differences are centred."""
    side = activations(60, d_model=d_model, dtype=dtype)
    acts = ContrastiveActivations((side + activations(d_model=d_model, seed=1, dtype=dtype)), side, paired=True)
    with pytest.raises(ValueError, match="All pairs differ by the same vector"):
        RepE.fit(acts, parity=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pairs_that_differ_by_more_than_rounding_are_fitted(dtype):
    """One coordinate varies by a few units in the last place, and all others are exact: that is the direction."""
    side = (8 * activations(60).clamp(-2, 2)).round().to(dtype) / 8
    step = torch.zeros(D_MODEL, dtype=dtype)
    step[3] = max(8 * torch.finfo(dtype).eps, 1e-10)
    side[:, 3] = 1 + (side[:, 3] > 0).to(dtype)  # 1 or 2, so that the step is not lost where it is added
    signs = torch.where(torch.arange(60) % 2 == 0, 1, -1).unsqueeze(1).to(dtype)
    method = RepE.fit(ContrastiveActivations(side + 1 + signs * step, side, paired=True), parity=True)
    assert abs(float(method.direction[3])) > 0.999
