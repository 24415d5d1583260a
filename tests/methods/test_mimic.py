"""MiMiC carries mean and covariance over, where its gate is open; against POT, scikit-learn and planted maps."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from instances import D_MODEL, activations, in_float64, planted, without_shape_checks

from odesteer_tl import _memory
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.methods import MiMiC

DATA = Path(__file__).parents[1] / "fixtures"


def optimal(n=40_000, d_model=6, seed=0):
    """(acts, A, shift): desired rows are μ + shift + A(x − μ), x of the undesired law, A symmetric and PD."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing, half, mean, shift = draw(d_model, d_model), draw(d_model, d_model), 2 * draw(d_model), draw(d_model)
    matrix = half @ half.T / d_model + 0.3 * torch.eye(d_model, dtype=torch.float64)
    first, second = (draw(n, d_model) @ mixing.T for _ in range(2))
    return ContrastiveActivations(mean + shift + first @ matrix, mean + second, layer=3), matrix, shift


def moments(x):
    return x.mean(0), torch.cov(x.T, correction=0)


def test_a_planted_map_is_recovered():
    """A symmetric positive definite map is the optimal one, so the only error is of the sample: 1/√n = .005."""
    acts, matrix, shift = optimal()
    method = MiMiC.fit(acts, reg=1e-6)
    assert float((method.matrix - matrix).norm() / matrix.norm()) < 0.03
    standard_error = ((acts.desired.var(0) + acts.undesired.var(0)).sum() / len(acts.desired)).sqrt()
    assert float((method.shift - shift).norm()) < 2.5 * float(standard_error) < 0.2


@pytest.mark.parametrize("sizes", [(60, 45), (400, 300)])
def test_the_mapped_sample_has_the_moments_of_the_desired(sizes):
    acts = planted(*sizes)
    mean, covariance = moments(acts.desired.double())
    for reg in (1e-2, 1e-6):
        method = in_float64(MiMiC.fit(acts, reg=reg, gate=False))
        got = moments(method.steer(acts.undesired.double(), T=1.0))
        torch.testing.assert_close(got[0], mean, rtol=0, atol=1e-5)  # the map is kept in float32
        # A(Σ₋ + reg I)A = Σ₊ + reg I, so the mapped covariance is Σ₊ + reg(I − A²).
        off = reg * (torch.eye(D_MODEL, dtype=torch.float64) - method.matrix @ method.matrix)
        torch.testing.assert_close(got[1], covariance + off, rtol=0, atol=1e-5)
    assert float((got[1] - covariance).norm() / covariance.norm()) < 1e-4


def test_the_matrix_is_symmetric_and_positive_definite_with_fewer_samples_than_dimensions_too():
    for acts in (planted(), planted(n_desired=9, n_undesired=7), planted(n_desired=2, n_undesired=200)):
        matrix = MiMiC.fit(acts).matrix
        assert torch.equal(matrix, matrix.T)
        assert float(torch.linalg.eigvalsh(matrix.double()).min()) > 1e-3


def padded(acts, width):
    """The same sides in more dimensions, where all that is new is 0."""
    sides = (torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in (acts.desired, acts.undesired))
    return ContrastiveActivations(*sides, layer=3)


def test_few_samples_give_the_map_of_the_whole_covariances():
    """A S A = T has one symmetric positive definite solution, whichever way it was found."""
    acts, reg = planted(9, 8, d_model=40), 1e-2
    method = MiMiC.fit(acts, reg=reg)
    assert isinstance(method.stretch, tuple)
    matrix, identity = method.matrix.double(), torch.eye(40, dtype=torch.float64)
    source, target = (moments(side.double())[1] + reg * identity for side in (acts.undesired, acts.desired))
    torch.testing.assert_close(matrix @ source @ matrix, target, rtol=0, atol=1e-5)
    assert torch.equal(matrix, matrix.T) and float(torch.linalg.eigvalsh(matrix).min()) > 1e-3


def test_few_samples_in_65536_dimensions_need_no_matrix_of_that_size():
    """The rows live in 24 of the dimensions, where all matrices are whole; beside them nothing is carried."""
    small, a = planted(14, 13), activations(6, dtype=torch.float32)
    near, far = MiMiC.fit(small), MiMiC.fit(padded(small, 65_536))
    assert not isinstance(near.stretch, tuple) and isinstance(far.stretch, tuple)
    wide = torch.nn.functional.pad(a, (0, 65_536 - D_MODEL))
    wide[:, -1] = 3.0
    out, expected = far.steer(wide, T=1.0), near.steer(a, T=1.0)
    torch.testing.assert_close(out[:, :D_MODEL], expected, rtol=0, atol=1e-4)
    assert float((out[:, D_MODEL:] - wide[:, D_MODEL:]).abs().max()) <= 1e-5
    assert float((expected - a).norm(dim=-1).max()) > 0.5


def test_covariances_that_do_not_fit_the_memory_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(_memory, "room", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"MiMiC's map of 105 samples in 24 dimensions needs 36,864 bytes .* 10,000: "):
        MiMiC.fit(planted())


def test_parity_with_the_released_code():
    with np.load(DATA / "reference.npz") as inputs, np.load(DATA / "reference_maps.npz") as stored:
        acts = ContrastiveActivations(*(torch.from_numpy(inputs[side]) for side in ("desired", "undesired")))
        x = torch.from_numpy(inputs["x"])
        matrix, offset, desired, mapped = (
            torch.from_numpy(stored[f"mimic_{key}"]) for key in ("A", "B", "gate_x", "x")
        )
    method = MiMiC.fit(acts)
    got = method.source + method.shift - method.source @ method.matrix
    for ours, theirs in ((method.matrix, matrix), (got, offset[0]), (method.steer(x, T=1.0), mapped)):
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())
    assert desired.tolist() == [0, 0, 1, 1, 1]  # both cases are there
    assert torch.equal((method.vector_field(x) == 0).all(-1), desired == 1)


@pytest.mark.parametrize("sizes", [(60, 45), (15, 200)])
def test_the_map_is_pots_and_the_gate_scikit_learns(sizes):
    da = pytest.importorskip("ot.da")
    from sklearn.linear_model import LogisticRegression

    acts, a = planted(*sizes), activations(300)
    source, target = acts.undesired.double().numpy(), acts.desired.double().numpy()
    transport = da.LinearTransport(reg=1e-2).fit(Xs=source, Xt=target)
    mapped = torch.from_numpy(transport.transform(Xs=a.numpy()))
    classifier = LogisticRegression(max_iter=1000).fit(
        np.concatenate([target, source]), [1] * sizes[0] + [0] * sizes[1]
    )
    undesired = torch.from_numpy(classifier.predict(a.numpy()) == 0)
    assert 10 < int(undesired.sum()) < 290 or sizes != (60, 45)

    everywhere, gated = MiMiC.fit(acts, gate=False), MiMiC.fit(acts)
    largest = float(mapped.abs().max())
    assert float((everywhere.steer(a, T=1.0) - mapped).abs().max()) <= 1e-5 * largest
    expected = torch.where(undesired.unsqueeze(-1), mapped, a)
    assert float((gated.steer(a, T=1.0) - expected).abs().max()) <= 1e-5 * largest


def test_the_gate_leaves_what_is_predicted_desired_as_it_is():
    acts = planted(30, 200)  # the classifier has seen one side more often: its threshold is not h = 0
    method, a = MiMiC.fit(acts), activations(400)
    assert method.prior == pytest.approx(math.log(200 / 30))
    h = in_float64(method).barrier.value(a)
    closed = h > method.prior
    out = method.steer(a, T=1.0)
    assert torch.equal(out[closed], a[closed]) and (method.vector_field(a)[closed] == 0).all()
    assert ((out - a).norm(dim=-1)[~closed] > 0.1).all()
    between = (h > 0) & ~closed  # likelier desired by h, predicted undesired by the prior
    assert min(int(closed.sum()), int(between.sum())) >= 5
    far = acts.desired + 5 * (acts.desired.mean(0) - acts.undesired.mean(0))
    assert torch.equal(method.steer(far, T=0.7), far)
    assert (MiMiC.fit(acts, gate=False).steer(far, T=0.7) != far).any(-1).all()


@pytest.mark.parametrize("gate", [False, True])
def test_strength_goes_straight_from_the_activation_to_the_map(gate):
    method, a = in_float64(MiMiC.fit(planted(), gate=gate)), activations(50)
    mapped = method.source + method.shift + (a - method.source) @ method.matrix
    if gate:
        mapped = torch.where((method.barrier.value(a) > method.prior).unsqueeze(-1), a, mapped)
    assert method.steer(a, T=0) is a
    for T in (0.25, 0.5, 1.0):
        torch.testing.assert_close(method.steer(a, T=T), (1 - T) * a + T * mapped, rtol=0, atol=1e-12)
    torch.testing.assert_close(method.vector_field(a), mapped - a, rtol=0, atol=1e-12)
    assert method.speed is None


def test_without_its_gate_it_is_a_gradient_flow():
    method, a = in_float64(MiMiC.fit(planted(), gate=False)), activations(5)
    jacobian = torch.func.vmap(torch.func.jacrev(method.vector_field))(a)
    torch.testing.assert_close(jacobian, method.stretch.expand_as(jacobian), rtol=0, atol=1e-12)  # symmetric: no curl


def test_the_map_costs_no_precision_where_activations_are_far_from_the_origin():
    """Residual streams have a large common offset; μ₊ − Aμ₋ would be a difference of large numbers."""
    acts, a = planted(), activations(20, dtype=torch.float32)
    offset = torch.full((D_MODEL,), 512.0)
    away = ContrastiveActivations(acts.desired + offset, acts.undesired + offset, layer=3)
    near, far = (MiMiC.fit(each, gate=False) for each in (acts, away))
    gap = (far.steer(a + offset, T=1.0) - offset) - near.steer(a, T=1.0)
    assert float(gap.abs().max()) < 2e-3  # 512 · 2⁻²³ = 6e-5, times the norm of A


def test_steering_leaves_torch_for_nothing(monkeypatch):
    method, a = MiMiC.fit(planted()), activations(3, dtype=torch.float32)

    def refuse(*args, **kwargs):
        raise AssertionError("numpy")

    monkeypatch.setattr(torch.Tensor, "numpy", refuse)
    monkeypatch.setattr(torch, "from_numpy", refuse)
    assert torch.isfinite(method.steer(a, T=1.0)).all()


def test_equal_fits_have_equal_bytes():
    first, again = (MiMiC.fit(planted()) for _ in range(2))
    for name in ("stretch", "source", "shift"):
        assert getattr(first, name).numpy().tobytes() == getattr(again, name).numpy().tobytes()
    assert first.barrier.weight.numpy().tobytes() == again.barrier.weight.numpy().tobytes()


@pytest.mark.parametrize(("desired", "undesired"), [(1, 5), (5, 1)])
def test_too_few_samples_are_refused(desired, undesired):
    message = f"MiMiC needs at least 2 desired and 2 undesired activations, got {desired} and {undesired}"
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        MiMiC.fit(planted(n_desired=desired, n_undesired=undesired))


@pytest.mark.parametrize("reg", [0.0, -1e-2, math.inf, math.nan])
def test_a_covariance_that_could_not_be_inverted_is_refused(reg):
    with pytest.raises(
        ValueError, match=f"reg, which is added to the variances, must be positive and finite, got {reg}"
    ):
        MiMiC.fit(planted(), reg=reg)
