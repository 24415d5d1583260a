"""Laws of barriers h: gradients, the logistic fit against independent solutions, prior odds, reduced forms."""

import math

import numpy as np
import pytest
import torch
from instances import ALL_BARRIERS, BARRIERS, RECIPES, REDUCIBLE, Own, activations, in_float64, log_ratio, planted
from scipy.optimize import minimize, root
from sklearn.linear_model import LogisticRegression
from torch.func import grad

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import Barrier, LogRatioBarrier, auc, mean_difference, with_grad
from odesteer_tl.flows.features import Linear, Polynomial, PolynomialSketch
from odesteer_tl.flows.fields import UnitGradient


def cosine(u, v):
    return torch.nn.functional.cosine_similarity(u.double(), v.double(), dim=-1)


@pytest.mark.parametrize("name", ALL_BARRIERS)
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_grad_equals_autograd_of_value(name, batch):
    barrier, a = BARRIERS[name](), activations(*batch)
    expected = grad(lambda x: barrier.value(x).sum())(a)
    # Two orders of float64 sums. The whitening of kernel features holds entries up to 1e6 that cancel: 1e-16 · 1e6.
    assert (barrier.grad(a) - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", ALL_BARRIERS)
def test_grad_equals_finite_differences_of_value(name):
    barrier, a, u = BARRIERS[name](), activations(4), activations(4, seed=8)
    eps = 1e-5
    slope = (barrier.value(a + eps * u) - barrier.value(a - eps * u)) / (2 * eps)
    # Central differences err by eps² = 1e-10 of the third derivative, and by 1e-16/eps = 1e-11 of h.
    terms = float(barrier.value(a).abs().max() + slope.abs().max())
    assert ((barrier.grad(a) * u).sum(-1) - slope).abs().max() <= 1e-7 * terms


@pytest.mark.parametrize("name", ALL_BARRIERS)
def test_value_and_grad_have_the_shapes_of_the_protocol(name):
    barrier = BARRIERS[name]()
    assert isinstance(barrier, Barrier)
    for batch in ((), (1,), (2, 3, 4)):
        assert barrier.value(activations(*batch)).shape == batch
        assert barrier.grad(activations(*batch)).shape == (*batch, 24)


@pytest.mark.parametrize("name", REDUCIBLE)
def test_the_reduced_h_is_h(name):
    barrier, a = in_float64(log_ratio(name)), activations(6)
    found = barrier.reduced()
    inside = a @ found.basis
    length = (a - inside @ found.basis.T).norm(dim=-1, keepdim=True)
    h = barrier.value(a)
    # Rounding of float64 sums whose terms (raw features of degree 3) reach 1e3 times their sum.
    terms = 1 + float((barrier.features(a) * barrier.weight).abs().sum(-1).max())
    assert (found.inner.value(torch.cat([inside, length], -1)) - h).abs().max() <= 1e-11 * terms


def logistic_optimum(phi, labels, C):
    """Minimum of ½‖w‖² + C Σ log-loss over (w, intercept), by scipy, in float64."""
    signs = 2 * labels - 1

    def loss(params):
        w, b = params[:-1], params[-1]
        margin = signs * (phi @ w + b)
        pull = -C * signs / (1 + np.exp(margin))
        value = 0.5 * w @ w + C * np.logaddexp(0, -margin).sum()
        return value, np.append(w + phi.T @ pull, pull.sum())

    start = np.zeros(phi.shape[1] + 1)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 20000, "gtol": 1e-11, "ftol": 0})
    return best.x[:-1], best.x[-1]


@pytest.mark.parametrize("name", ["linear-raw", "linear-unit", "polynomial-2-curved", "sketch-2-unit", "fourier-unit"])
@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_the_fit_is_the_logistic_optimum_with_the_prior_odds_taken_out(name, C):
    acts, recipe = planted(60, 25), RECIPES[name]
    samples = torch.cat([acts.desired, acts.undesired]).double()
    phi, labels = recipe.fit(samples), np.repeat([1.0, 0.0], [60, 25])
    w, intercept = logistic_optimum(phi(samples).numpy(), labels, C)
    barrier = LogRatioBarrier.fit(acts, recipe, C=C, tol=1e-9)
    expected = phi(activations(9)) @ torch.from_numpy(w) + intercept + math.log(25 / 60)
    got = in_float64(barrier).value(activations(9))
    # Weights are kept in float32: 6e-8 of every term of the sum wᵀφ.
    terms = float((phi(activations(9)) * torch.from_numpy(w)).abs().sum(-1).max()) + abs(intercept)
    assert (got - expected).abs().max() <= 2e-6 * terms


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("C", [1.0, 30.0])
def test_full_rank_polynomial_is_kernel_logistic_regression(degree, C):
    """Oracle: the stationarity of the dual, α = C(y − σ(Kα + b)) and Σα = 0, solved by scipy without any features."""
    gamma, coef0 = 2.0, 1.0
    acts = planted(40, 30)
    x = torch.nn.functional.normalize(torch.cat([acts.desired, acts.undesired]).double(), dim=-1)
    y = np.repeat([1.0, 0.0], [40, 30])
    K = ((gamma * x @ x.T + coef0) ** degree).numpy()

    def stationarity(unknown):
        alpha, b = unknown[:-1], unknown[-1]
        p = 1 / (1 + np.exp(-(K @ alpha + b)))
        jacobian = np.zeros((len(unknown), len(unknown)))
        jacobian[:-1, :-1] = np.eye(len(y)) + C * (p * (1 - p))[:, None] * K
        jacobian[:-1, -1] = C * p * (1 - p)
        jacobian[-1, :-1] = 1
        return np.append(alpha - C * (y - p), alpha.sum()), jacobian

    solved = root(stationarity, np.zeros(len(y) + 1), jac=True, tol=1e-13)
    assert np.abs(stationarity(solved.x)[0]).max() < 1e-9
    alpha = torch.from_numpy(solved.x[:-1])

    def h_exact(a):
        direction = a / a.norm(dim=-1, keepdim=True)
        k = (gamma * direction @ x.T + coef0) ** degree
        return k @ alpha + float(solved.x[-1]) + math.log(30 / 40)

    barrier = LogRatioBarrier.fit(acts, Polynomial(degree, gamma=gamma, coef0=coef0), C=C, tol=1e-9)
    a = activations(20)
    h, v = h_exact(a), grad(lambda x: h_exact(x).sum())(a)
    # The barrier is kept in float32, and sums terms of about 20 times h that cancel: 20 · 6e-8 and a margin of 4.
    assert (in_float64(barrier).value(a) - h).abs().max() <= 5e-6 * h.abs().max()
    field = UnitGradient(in_float64(barrier))(a)
    assert (field - v / v.norm(dim=-1, keepdim=True)).norm(dim=-1).max() <= 5e-6


def test_h_is_the_true_log_ratio_whatever_the_class_sizes():
    """Two unit Gaussians at ±μ: h = 2μᵀa exactly. Dropping three quarters of one side must not shift h by log 4."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.tensor([0.8, -0.3])
    cloud = torch.randn(2, 40000, 2, generator=generator)
    a = torch.randn(50, 2, generator=generator)
    for n_desired, n_undesired in ((40000, 40000), (40000, 10000), (10000, 40000)):
        acts = ContrastiveActivations(cloud[0, :n_desired] + mu, cloud[1, :n_undesired] - mu)
        barrier = LogRatioBarrier.fit(acts, Linear(normalize=False))
        # The standard error of the fitted intercept is about 1/√10,000 · 2 = 0.02; the shift to catch is 1.39.
        assert (barrier.value(a) - 2 * a @ mu).abs().max() < 0.15
        assert cosine(barrier.weight, mu) > 0.999


@pytest.mark.parametrize("name", ["polynomial-2-curved", "sketch-2-unit", "fourier-unit", "linear-raw"])
def test_repeating_every_row_changes_nothing_when_C_is_shared_out(name):
    acts = planted()
    samples = torch.cat([acts.desired, acts.undesired]).double()
    phi = RECIPES[name].fit(samples)

    class Fitted:  # the same φ for both: median distances and landmarks depend on the multiset of samples
        def fit(self, samples):
            return phi

    twice = ContrastiveActivations(acts.desired.repeat(2, 1), acts.undesired.repeat(2, 1))
    one = in_float64(LogRatioBarrier.fit(acts, Fitted(), C=1.0, tol=1e-9))
    two = in_float64(LogRatioBarrier.fit(twice, Fitted(), C=0.5, tol=1e-9))
    a = activations(9)
    # Two float32 roundings of one optimum.
    terms = 1 + float((phi(a) * one.weight).abs().sum(-1).max())
    assert (one.value(a) - two.value(a)).abs().max() <= 1e-6 * terms


@pytest.mark.parametrize("name", ["polynomial-2-curved", "linear-raw", "sketch-2-unit", "sketch-3-unit"])
def test_class_imbalance_moves_h_by_a_constant_and_no_velocity(name):
    """h is the logit of the same regression plus log(n₋/n₊): a constant, which no gradient sees."""
    acts = planted(80, 20)
    samples = torch.cat([acts.desired, acts.undesired]).double()
    phi = RECIPES[name].fit(samples)
    regression = LogisticRegression(tol=1e-5, max_iter=1000)
    regression.fit(phi(samples).numpy(), [1] * 80 + [0] * 20)
    barrier = in_float64(LogRatioBarrier.fit(acts, RECIPES[name]))
    a = activations(9)
    logit = torch.from_numpy(regression.decision_function(phi(a).numpy()))
    shift = barrier.value(a) - logit
    terms = 1 + float((phi(a) * barrier.weight).abs().sum(-1).max())
    assert (shift - math.log(20 / 80)).abs().max() <= 2e-7 * terms  # the weight is rounded to float32
    moved_only = LogRatioBarrier(barrier.features, barrier.weight, barrier.bias - math.log(20 / 80))
    assert torch.equal(UnitGradient(barrier)(a), UnitGradient(moved_only)(a))


@pytest.mark.parametrize("name", ["polynomial-2-curved", "polynomial-3-unit", "sketch-2-unit", "linear-raw"])
def test_swapping_desired_and_undesired_negates_h_and_the_field(name):
    acts = planted(60, 25)
    swapped = ContrastiveActivations(acts.undesired, acts.desired)
    one = in_float64(LogRatioBarrier.fit(acts, RECIPES[name], tol=1e-9))
    other = in_float64(LogRatioBarrier.fit(swapped, RECIPES[name], tol=1e-9))
    a = activations(9)
    terms = 1 + float((one.features(a) * one.weight).abs().sum(-1).max())
    # Two float32 roundings of one optimum.
    assert (one.value(a) + other.value(a)).abs().max() <= 1e-6 * terms
    assert (UnitGradient(one)(a) + UnitGradient(other)(a)).norm(dim=-1).max() <= 2e-5


def test_the_tolerance_of_the_paper_stops_earlier():
    """Equal figures at 1e-4 and 1e-9 would mean that `tol` never reaches the solver."""
    recipe = PolynomialSketch(n_components=300, gamma=2.0)
    weights = [LogRatioBarrier.fit(planted(), recipe, C=30.0, tol=tol).weight for tol in (1e-2, 1e-4, 1e-9)]
    loose, paper = ((w - weights[2]).norm() / weights[2].norm() for w in weights[:2])
    assert 1e-7 < paper < loose  # 6e-8 is the float32 rounding of two equal fits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_fitted_barrier_is_float32_whatever_the_activations(dtype):
    acts = planted()
    barrier = LogRatioBarrier.fit(
        ContrastiveActivations(acts.desired.to(dtype), acts.undesired.to(dtype)), Polynomial()
    )
    assert {barrier.weight.dtype, barrier.features.landmarks.dtype, barrier.features.whitening.dtype} == {torch.float32}
    exact = LogRatioBarrier.fit(acts, Polynomial())
    a = activations(9, dtype=torch.float32)
    # bfloat16 rounds each activation by 2⁻⁹; the fit averages that out to the same order.
    assert cosine(barrier.grad(a), exact.grad(a)).min() > 0.999


def test_mean_difference_is_the_log_ratio_of_two_unit_gaussians():
    acts, a = planted(), activations(9)
    barrier = in_float64(mean_difference(acts))
    spread = torch.eye(24, dtype=torch.float64)
    sides = [torch.distributions.MultivariateNormal(s.double().mean(0), spread) for s in (acts.desired, acts.undesired)]
    expected = sides[0].log_prob(a) - sides[1].log_prob(a)
    assert (barrier.value(a) - expected).abs().max() < 1e-5  # the weight is rounded to float32


def test_auc_counts_pairs_in_the_right_order_and_ties_half():
    class Rounded:
        def value(self, a):
            return a[..., 0].round()

        def grad(self, a):
            return torch.zeros_like(a)

    desired, undesired = activations(40, seed=1) + 0.3, activations(30, seed=2)
    high, low = desired[:, 0].round(), undesired[:, 0].round()
    pairs = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    assert (high[:, None] == low).any()  # ties are in the sample
    assert auc(Rounded(), desired, undesired) == pytest.approx(float(pairs.mean()), abs=1e-12)


def test_the_fit_separates_what_was_planted():
    acts, held_out = planted(seed=0), planted(seed=0)
    fit, test = held_out.split(seed=1, fraction=0.6)
    barrier = LogRatioBarrier.fit(fit, Polynomial(gamma=2.0), C=10.0)
    assert auc(barrier, test.desired, test.undesired) > 0.9
    assert (barrier.value(acts.desired).mean() > 0) and (barrier.value(acts.undesired).mean() < 0)


def test_a_barrier_with_its_own_grad_is_left_alone():
    barrier = log_ratio("linear-raw")
    assert with_grad(barrier) is barrier


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_autograd_supplies_a_gradient_under_no_grad_and_inference_mode(mode):
    expected = with_grad(Own()).grad(activations(5))
    outside = activations(5)
    with mode():
        inside = activations(5)
        assert torch.equal(with_grad(Own()).grad(inside), expected)
        assert torch.equal(with_grad(Own()).grad(outside), expected)


def test_the_gradient_of_a_users_barrier_equals_the_one_written_by_hand():
    a = activations(6)
    x, y, z = a[:, 0], a[:, 1], a[:, 2]
    bell = 1 - torch.tanh(x - 0.5 * y).square()
    by_hand = -0.1 * a * torch.cos(z).unsqueeze(-1)
    by_hand[:, 0] += bell
    by_hand[:, 1] -= 0.5 * bell
    by_hand[:, 2] += 0.05 * (a.square().sum(-1) - 20) * torch.sin(z)
    assert (with_grad(Own()).grad(a) - by_hand).abs().max() < 1e-13  # float64, entries of order 1
