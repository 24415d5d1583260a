"""Laws of feature maps φ: their products with a weight, the kernels they stand for, their reduced coordinates."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from instances import ALL_FEATURES, D_MODEL, ON_THE_SPHERE, RECIPES, REDUCIBLE, activations, in_float64, planted
from sklearn.linear_model import LogisticRegression
from torch.func import grad

from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import (
    Fourier,
    Kernel,
    Polynomial,
    PolynomialSketch,
    RandomFourier,
    Sketch,
    fit_to_sides,
    norm,
)
from odesteer_tl.flows.fields import UnitGradient


def fit(name):
    acts = planted()
    return in_float64(RECIPES[name].fit(torch.cat([acts.desired, acts.undesired]).double()))


def weight_for(phi, seed=3):
    k = phi(activations()).shape[-1]
    return torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("name", ALL_FEATURES)
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_the_closed_form_product_equals_autograd(name, batch):
    phi = fit(name)
    a, w = activations(*batch), weight_for(phi)
    expected = grad(lambda x: (phi(x) @ w).sum())(a)
    # Two orders of the same float64 sums over at most 300 terms: rounding is about 1e-14 of the largest entry.
    assert (phi.vjp(a, w) - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", ALL_FEATURES)
def test_features_treat_every_activation_on_its_own(name):
    phi = fit(name)
    a = activations(2, 3)
    rows = torch.stack([torch.stack([phi(a[i, j]) for j in range(3)]) for i in range(2)])
    # A matrix product may sum in another order than the product of one row.
    torch.testing.assert_close(phi(a), rows, rtol=1e-10, atol=1e-10 * float(rows.abs().max()))


@pytest.mark.parametrize("name", ON_THE_SPHERE)
@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e30, 1e150])
def test_normalised_features_see_only_the_direction(name, scale):
    phi, a = fit(name), activations(4)
    # r + 1e-12 stands for r: at ‖a‖ = 5e-6 the direction is off by 2e-7, which features with gamma = 2 repeat.
    torch.testing.assert_close(phi(scale * a), phi(a), rtol=1e-5, atol=1e-6 * float(phi(a).abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_neither_overflows_nor_underflows(dtype):
    a = activations(3, dtype=dtype)
    plain = a.norm(dim=-1, keepdim=True)
    exponent = 120 if dtype == torch.float32 else 1000
    for scale in (2.0**exponent, 2.0**-exponent):  # powers of two: scaling itself does not round
        torch.testing.assert_close(norm(scale * a) / scale, plain, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert norm(torch.zeros(2, 5, dtype=dtype)).eq(0).all()


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("coef0", [0.0, 1.0])
def test_full_rank_polynomial_features_are_the_exact_kernel(degree, normalize, coef0):
    acts = planted(30, 20)
    samples, fresh = torch.cat([acts.desired, acts.undesired]).double(), activations(7)
    phi = Polynomial(degree, gamma=0.3, coef0=coef0, normalize=normalize, rank=50).fit(samples)
    x, y = (unit(samples), unit(fresh)) if normalize else (samples, fresh)
    exact = (0.3 * x @ x.T + coef0) ** degree
    # 1e-8: the cut-off drops eigenvalues below 1e-12 of the largest, and so errs by at most that share per entry;
    # products with a kept eigenvector of that size carry √1e-12 of float64 rounding more.
    assert (phi(samples) @ phi(samples).T - exact).abs().max() <= 1e-8 * exact.abs().max()
    # A sample's features against those of *any* activation give the kernel too: the landmarks span it.
    across = (0.3 * x @ y.T + coef0) ** degree
    assert (phi(samples) @ phi(fresh).T - across).abs().max() <= 1e-8 * exact.abs().max()


def test_low_rank_polynomial_features_approximate_from_below_and_improve_with_rank():
    acts = planted()
    samples = torch.cat([acts.desired, acts.undesired]).double()
    exact = (2.0 * unit(samples) @ unit(samples).T + 1) ** 2
    errors = []
    for rank in (5, 20, 60, 105):
        phi = Polynomial(2, gamma=2.0, rank=rank).fit(samples)
        rest = exact - phi(samples) @ phi(samples).T
        # A Nyström remainder is a Schur complement, so positive semidefinite (to the rounding of entries of size 9).
        assert torch.linalg.eigvalsh(rest).min() > -1e-8
        errors.append(float(rest.trace()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8 < 0.01 * errors[0]


def test_landmarks_are_distinct_samples_chosen_by_the_seed():
    acts = planted()
    samples = torch.cat([acts.desired, acts.undesired]).double()
    chosen = [Polynomial(rank=10, seed=seed).fit(samples).landmarks for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    for landmarks in chosen:
        distances = torch.cdist(landmarks, unit(samples))
        which = distances.argmin(1)
        assert distances.min(1).values.max() < 1e-7  # cdist through a matrix product: √eps of unit vectors is 1.5e-8
        assert len(which.unique()) == 10


def brute_force_sketch(x, phi):
    """Σ over index tuples: entry Σ_k hash_k(i_k) mod n gains Π_k sign_k(i_k) x̃(i_k). No Fourier transform."""
    x = np.sqrt(phi.gamma) * x
    if phi.coef0 != 0:
        x = np.append(x, np.sqrt(phi.coef0))
    out = np.zeros(phi.n_components)
    hashes, signs = phi.hashes.numpy(), phi.signs.numpy()
    for index in itertools.product(range(len(x)), repeat=len(hashes)):
        bucket = sum(hashes[k, i] for k, i in enumerate(index)) % phi.n_components
        out[bucket] += np.prod([signs[k, i] * x[i] for k, i in enumerate(index)])
    return out


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("coef0", [0.0, 0.7])
@pytest.mark.parametrize("n_components", [1, 7, 8])
def test_the_sketch_is_the_sum_over_index_tuples(degree, coef0, n_components):
    a = activations(d_model=5)
    phi = PolynomialSketch(n_components, degree, gamma=0.4, coef0=coef0, normalize=False).fit(a.unsqueeze(0))
    # The transforms of at most 8 numbers round at 1e-15.
    np.testing.assert_allclose(phi(a).numpy(), brute_force_sketch(a.numpy(), phi), rtol=0, atol=1e-12)


def test_a_degree_2_sketch_is_a_dense_quadratic_form():
    phi = fit("sketch-2-unit")
    w, a = weight_for(phi), activations(6)
    root = torch.full((D_MODEL + 1,), phi.gamma**0.5, dtype=torch.float64)
    root[-1] = phi.coef0**0.5
    bucket = (phi.hashes[0].unsqueeze(1) + phi.hashes[1]) % phi.n_components
    form = phi.signs[0].unsqueeze(1) * phi.signs[1] * torch.outer(root, root) * w[bucket]
    x = torch.nn.functional.pad(unit(a), (0, 1), value=1.0)
    expected = torch.einsum("bi,ij,bj->b", x, form, x)
    # Float64 transforms of length 300 round at 1e-14 of the weight's size.
    assert (phi(a) @ w - expected).abs().max() <= 1e-12 * w.abs().max() * D_MODEL
    sphere = (x @ (form + form.T))[:, :-1]
    tangent = (sphere - unit(a) * (unit(a) * sphere).sum(-1, keepdim=True)) / a.norm(dim=-1, keepdim=True)
    assert (phi.vjp(a, w) - tangent).abs().max() <= 1e-10 * tangent.abs().max()


def kernel_error(recipe_of, exact, a):
    """Root mean square error of inner products of features, over pairs of rows and 16 draws."""
    errors = []
    for seed in range(16):
        phi = recipe_of(seed).fit(a)
        errors.append((phi(a) @ phi(a).T - exact).square().mean())
    return float(torch.stack(errors).mean().sqrt())


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_sketched_products_tend_to_the_kernel_like_one_over_root_n(degree):
    a = unit(activations(8, d_model=200))  # enough coordinates that 3,200 buckets still see collisions
    exact = (a @ a.T + 0.5) ** degree
    sizes = [50, 200, 800, 3200]
    error = [
        kernel_error(lambda seed, n=n: PolynomialSketch(n, degree, gamma=1.0, coef0=0.5, seed=seed), exact, a)
        for n in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(error), 1)[0]
    # 16 draws of 36 correlated pairs: each error is known to about 15 %, a slope over a factor of 64 to about 0.06.
    assert slope == pytest.approx(-0.5, abs=0.12)


def test_fourier_products_tend_to_the_gaussian_kernel_like_one_over_root_n():
    a = activations(8)
    exact = torch.exp(-torch.cdist(a, a).square() / (2 * 5.0**2))
    sizes = [50, 200, 800, 3200]
    error = [kernel_error(lambda seed, n=n: RandomFourier(n, sigma=5.0, seed=seed), exact, a) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(error), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.12)  # as above
    assert error[-1] < 0.02  # each product is a mean over 3,200 terms of variance at most 1: below 1/√3200 = 0.018


def test_the_median_bandwidth_is_the_median_distance_between_samples():
    samples = activations(41)
    by_rule = RandomFourier(50).fit(samples)
    distances = torch.pdist(samples)
    by_hand = RandomFourier(50, sigma=float(distances.median())).fit(samples)
    torch.testing.assert_close(by_rule.frequencies, by_hand.frequencies, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", REDUCIBLE)
def test_reduced_coordinates_are_isometric_and_carry_value_and_gradient(name):
    phi = fit(name)
    w, a = weight_for(phi), activations(6)
    found = phi.reduced(w)
    eye = torch.eye(found.basis.shape[1], dtype=torch.float64)
    assert (found.basis.T @ found.basis - eye).abs().max() < 1e-12  # a float64 factorisation of a 105-row matrix
    inside = a @ found.basis
    rest = a - inside @ found.basis.T
    length = rest.norm(dim=-1, keepdim=True)
    y = torch.cat([inside, length], dim=-1)
    value = phi(a) @ w
    # Features of raw activations reach 1e3 and cancel in the sum, so the scale of the error is that of the terms.
    terms = float((phi(a) * w).abs().sum(-1).max())
    assert (found.features(y) @ found.weight + found.bias - value).abs().max() <= 1e-11 * terms
    g = found.features.vjp(y, found.weight)
    back = g[:, :-1] @ found.basis.T + g[:, -1:] * rest / length
    expected = phi.vjp(a, w)
    assert (back - expected).abs().max() <= 1e-9 * max(float(expected.abs().max()), 1e-3 * terms)


@pytest.mark.parametrize("name", [name for name in ALL_FEATURES if name.startswith("sketch")])
def test_a_sketch_has_no_reduced_form(name):
    phi = fit(name)
    assert phi.reduced(weight_for(phi)) is None


def test_an_injected_draw_is_used_as_it_is():
    hashes = torch.tensor([[0, 1, 2], [2, 1, 0]])
    signs = torch.tensor([[1, -1, 1], [-1, 1, 1]])
    phi = PolynomialSketch(4, hashes=hashes, signs=signs).fit(torch.ones(3, 2))
    assert torch.equal(phi.hashes, hashes)
    assert torch.equal(phi.signs, signs.float())
    np.testing.assert_allclose(
        phi(torch.tensor([0.6, 0.8])).numpy(), brute_force_sketch(np.array([0.6, 0.8]), phi), atol=1e-6
    )  # float32


@pytest.mark.parametrize(
    ("recipe", "complete"), [(Polynomial(rank=5), Kernel), (PolynomialSketch(50), Sketch), (RandomFourier(9), Fourier)]
)
def test_a_recipe_becomes_a_complete_map_and_stays_as_it_was(recipe, complete):
    before = repr(recipe)
    assert isinstance(recipe.fit(activations(20)), complete)
    assert repr(recipe) == before


@pytest.mark.parametrize("name", [name for name in ALL_FEATURES if getattr(RECIPES[name], "rank", 1000) >= 105])
def test_a_fit_to_the_sides_is_a_fit_to_all_rows_where_none_is_left_out(name):
    acts, a = planted(), activations(5)
    together = RECIPES[name].fit(torch.cat([acts.desired, acts.undesired]).double())
    apart = fit_to_sides(RECIPES[name], acts.desired, acts.undesired)
    assert type(apart) is type(together)
    assert torch.equal(in_float64(apart)(a), in_float64(together)(a))


@pytest.mark.parametrize("normalize", [True, False])
def test_where_rows_are_left_out_half_of_the_landmarks_are_sums_over_all_rows(normalize):
    """Means; Σ r x of either side and Σ r (ωᵀx) x, with the residuals of a regression through the means; then rows."""
    acts, count = planted(300, 200), 14
    phi = fit_to_sides(Polynomial(rank=count, normalize=normalize), acts.desired, acts.undesired)
    assert phi.landmarks.shape == (count, D_MODEL)

    def placed(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows

    sides = [placed(side.double().numpy()) for side in (acts.desired, acts.undesired)]
    x, y = np.concatenate(sides), np.repeat([1.0, 0.0], [300, 200])
    means = placed(np.stack([side.mean(0) for side in sides]))
    np.testing.assert_allclose(phi.landmarks[:2].numpy(), means, rtol=0, atol=5e-12)  # r + 1e-12 stands for r, twice
    values, vectors = np.linalg.eigh((0.1 * means @ means.T + 1) ** 2)
    seen = (0.1 * x @ means.T + 1) ** 2 @ vectors / np.sqrt(values)
    r = y - LogisticRegression(max_iter=1000).fit(seen, y).predict_proba(seen)[:, 1]
    weighted = placed(np.stack([r[rows] @ x[rows] / r[rows].sum() for rows in (slice(300), slice(300, 500))]))
    np.testing.assert_allclose(phi.landmarks[2:4].numpy(), weighted, rtol=0, atol=1e-6)
    omega = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0)).double().numpy()
    mixed = (x @ omega.T * r[:, None]).T @ x
    found = phi.landmarks[4:9].numpy()
    unit_rows = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (mixed, found)]
    np.testing.assert_allclose(unit_rows[1], unit_rows[0], rtol=0, atol=1e-5)  # of float32
    lengths = np.linalg.norm(phi.landmarks[9:].numpy(), axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths.mean(), rtol=1e-6)  # as long as rows are
    apart = np.linalg.norm(phi.landmarks[9:].numpy()[:, None] - x, axis=-1)
    assert apart.min(1).max() < 5e-12 * lengths.max() and len(set(apart.argmin(1).tolist())) == 5
    assert {bool(row < 300) for row in apart.argmin(1)} == {True, False}  # drawn from both sides


def test_sides_that_are_far_apart_have_landmarks_too():
    """Where p rounds to 1 for every row of a side, that side's residuals are 0 to rounding."""
    draw = 30 * torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(0))
    acts = replace(planted(d_model=16), desired=draw[0] + 150, undesired=draw[1] - 150)
    for scale in (1.0, 1e3):
        sides = scale * acts.desired, scale * acts.undesired
        phi = fit_to_sides(Polynomial(degree=3, rank=64, normalize=False), *sides)
        assert phi.landmarks.isfinite().all() and (phi.landmarks.norm(dim=1) > 0).all() and phi.whitening.shape[1] > 0


@pytest.mark.parametrize("separation", ["means", "spreads"])
def test_sums_over_all_rows_bring_the_field_of_few_landmarks_near_to_that_of_all(separation):
    """Where the sides differ in their means, and where they differ in spread alone."""
    acts, a = planted(300, 300, d_model=200), activations(40, d_model=200)
    if separation == "spreads":
        draw = torch.randn(2, 300, 200, generator=torch.Generator().manual_seed(5))
        draw[0, :, :3] *= 8
        acts, a = replace(acts, desired=draw[0], undesired=draw[1]), torch.cat([draw[0, :20], draw[1, :20]]).double()
    rows = torch.cat([acts.desired, acts.undesired]).double()

    def field(features):
        barrier = in_float64(LogRatioBarrier.fit(acts, features))
        return UnitGradient(barrier)(a)

    class Drawn:
        """The same features without `fit_sides`: rows alone."""

        def fit(self, samples):
            return Polynomial(rank=20).fit(samples)

    everything = field(Polynomial(rank=len(rows)))
    near, far = (
        torch.cosine_similarity(field(each), everything, dim=-1).mean() for each in (Polynomial(rank=20), Drawn())
    )
    assert near > 0.97 and far < 0.8
