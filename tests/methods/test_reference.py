"""Parity with numbers computed by the methods' released code (float32, d_model 64), stored in data/reference.npz.

`desired` [180, 64], `undesired` [150, 64] and `x` [5, 64] are the inputs, `times` three T. The sketch estimator of
degree 2 and 3 has 2,000 buckets, gamma 0.1, coef0 1, scikit-learn's default logistic regression; paths take ten steps.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from instances import in_float64

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Fourier, PolynomialSketch, RandomFourier
from odesteer_tl.flows.fields import UnitGradient
from odesteer_tl.methods import CAA, ITI, GradientFlow, ODESteer, StepODESteer

with np.load(Path(__file__).parents[1] / "fixtures" / "reference.npz") as stored:
    REFERENCE = {key: torch.from_numpy(stored[key]) for key in stored.files}
X = REFERENCE["x"]
PRIOR = math.log(150 / 180)


@cache
def acts():
    return ContrastiveActivations(REFERENCE["desired"], REFERENCE["undesired"])


def recipe(degree):
    hashes, signs = (REFERENCE[f"sketch{degree}_{key}"].long() for key in ("hash", "sign"))
    return PolynomialSketch(2000, degree, gamma=0.1, coef0=1.0, hashes=hashes, signs=signs)


@cache
def barrier_of(degree):
    return LogRatioBarrier.fit(acts(), recipe(degree), tol=1e-4)


def largest(a):
    return float(a.abs().max())


@pytest.mark.parametrize("degree", [2, 3])
def test_features(degree):
    phi = recipe(degree).fit(X)
    expected = REFERENCE[f"sketch{degree}_features_x"]  # of the first row of x
    # Float32 transforms of length 2,000: eps · √log₂(2000) of entries up to 1, some rounded differently.
    assert largest(phi(X[:1]) - expected) <= 1e-6 * largest(expected)


@pytest.mark.parametrize("degree", [2, 3])
def test_the_fit_and_its_log_ratio(degree):
    barrier = barrier_of(degree)
    # Same scikit-learn, same stopping rule; the reference's features are float32, ours float64.
    assert largest(barrier.weight - REFERENCE[f"sketch{degree}_coef"]) <= 2e-6 * largest(barrier.weight)
    intercept = float(REFERENCE[f"sketch{degree}_intercept"])
    assert barrier.bias - PRIOR == pytest.approx(intercept, abs=1e-5)
    assert largest(barrier.value(X) - REFERENCE[f"sketch{degree}_logratio_x"]) <= 1e-5


@pytest.mark.parametrize("degree", [2, 3])
def test_the_field(degree):
    method = ODESteer.fit(acts(), features=recipe(degree), tol=1e-4)
    # Unit vectors in float32, through transforms of the weight.
    assert largest(method.vector_field(X) - REFERENCE[f"sketch{degree}_field_x"]) <= 2e-6


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_end_points(degree, solver, i):
    method = ODESteer(barrier_of(degree), acts().origin, steps=10, solver=solver)
    T, expected = float(REFERENCE["times"][i]), REFERENCE[f"sketch{degree}_{solver}_T{i}"]
    # Ten float32 steps on activations of norm about 8 (entries about 1), the reference's with its own roundings. Its
    # rk4 is the 3/8 rule, ours Kutta's: they part by less than that here.
    assert largest(method.steer(X, T=T) - expected) <= 5e-6
    assert largest(expected - X) > 1e-2 * T  # the law is not met by standing still


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_one_step(degree, i):
    method = StepODESteer(barrier_of(degree), acts().origin)
    expected = REFERENCE[f"sketch{degree}_onestep_T{i}"]
    T = float(REFERENCE["times"][i])
    assert largest(method.steer(X, T=T) - expected) <= 2e-6 * max(T, 1)  # T times the field's tolerance


def fourier():
    """The stored draw. Its features are cos(x W/σ + b) of raw activations, scaled by √(2/k)."""
    features = Fourier(REFERENCE["rff_W"], REFERENCE["rff_b"], normalize=False)
    return LogRatioBarrier(features, REFERENCE["rff_coef"], float(REFERENCE["rff_intercept"]) + PRIOR)


def test_the_fourier_field():
    assert largest(UnitGradient(fourier())(X) - REFERENCE["rff_field_x"]) <= 5e-6  # float32 phases of size 10


@pytest.mark.parametrize("i", [0, 1, 2])
def test_fourier_end_points(i):
    method = GradientFlow(fourier(), steps=10)
    T = float(REFERENCE["times"][i])
    # Float32 phases Ωx of size 10 round by 1e-6; ten steps follow.
    assert largest(method.steer(X, T=T) - REFERENCE[f"rff_euler_T{i}"]) <= 5e-6 * max(T, 1)


def test_the_fourier_fit():
    """The same draw through our own regression gives the stored coefficients."""

    class Stored(RandomFourier):
        def fit(self, samples):
            return in_float64(fourier().features)

    barrier = LogRatioBarrier.fit(acts(), Stored(), tol=1e-4)
    assert largest(barrier.weight - REFERENCE["rff_coef"]) <= 1e-4 * largest(barrier.weight)
    assert barrier.bias - PRIOR == pytest.approx(float(REFERENCE["rff_intercept"]), abs=1e-4)


def test_caa():
    method = CAA.fit(acts())
    assert largest(method.vector_field(X) - REFERENCE["caa_vector"]) <= 1e-6  # float32 means of 180 rows


def test_iti():
    """The reference stops at lbfgs' tolerance 1e-4 in float32, where it is 2.5e-3 from its own optimum."""
    got, expected = ITI.fit(acts()).vector_field(X)[0], REFERENCE["iti_vector"]
    assert float(expected.norm()) == pytest.approx(1, abs=1e-6)
    assert float((got - expected).norm()) <= 5e-3
    optimum = ITI.fit(acts(), tol=1e-9).vector_field(X)[0]
    assert float((optimum - expected).norm()) <= 5e-3
