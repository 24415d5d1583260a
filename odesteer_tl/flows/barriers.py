"""Barriers: scalar functions h on activation space, positive in the desired region.

A barrier is any object with `value(a)`; `with_grad` supplies `grad(a)` by autograd where it is missing.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Basis, PerActivation, Weight
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.degeneracy import check_means
from odesteer_tl.flows.features import (
    FeatureMap,
    Linear,
    Recipe,
    Squares,
    check_fitted_map,
    check_recipe,
    features_of,
    fit_to_sides,
)
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import grad_by_autograd
from odesteer_tl.portable.precision import in_full
from odesteer_tl.portable.values import value_given
from odesteer_tl.remote.payloads import moved

Inner = TypeVar("Inner")

ZERO_WEIGHT = 1e-12
"""A weight of that length or less is 0: the regression stopped where it began."""


@dataclass(frozen=True, eq=False)
class Subspace(Generic[Inner]):
    """`inner` acts on the m + 1 coordinates of `basis` [d_model, m]; `elementwise`: a step costs O(m)."""

    basis: Basis
    inner: Inner
    elementwise: bool


@runtime_checkable
class Barrier(Protocol):
    """h and its gradient, for activations with any leading axes."""

    def value(self, a: Activations) -> PerActivation: ...

    def grad(self, a: Activations) -> Activations: ...


@dataclass(frozen=True, eq=False)
class LogRatioBarrier:
    """Log density ratio of desired to undesired activations: h(a) = log p₊(a)/p₋(a) ≈ wᵀφ(a) + b.

    `fit` takes w and the intercept from a logistic regression and adds log(n₋/n₊), which turns posterior odds into a
    density ratio and leaves the gradient J_φ(a)ᵀw as it is. Source: arXiv:2602.17560, section 4.
    """

    features: FeatureMap
    weight: Weight
    bias: float

    def __post_init__(self) -> None:
        check_fitted_map(self.features)

    @classmethod
    def fit(
        cls,
        acts: ContrastiveActivations,
        features: Recipe,
        *,
        C: float = 1.0,
        tol: float = 1e-5,
        max_iter: int = 1000,
    ) -> "LogRatioBarrier":
        """Logistic regression (scikit-learn, L2, lbfgs): min ½‖w‖² + C Σ log-loss, the intercept unpenalised.

        `tol=1e-4` is the paper's estimator. Features and regression are computed in float64, the barrier is float32.
        Warns (scikit-learn's ConvergenceWarning) where `max_iter` ends it. Raises ValueError for features that are not
        a recipe, and for sides that cannot be told apart (`ContrastiveActivations.check`, or a weight of 0).
        """
        from sklearn.linear_model import LogisticRegression

        check_recipe(features)
        acts.check("A log ratio")
        n_desired, n_undesired = len(acts.desired), len(acts.undesired)
        phi = fit_to_sides(features, acts.desired, acts.undesired)
        regression: Any = LogisticRegression(C=C, tol=tol, max_iter=max_iter)
        regression.fit(features_of(phi, acts.desired, acts.undesired).numpy(), [1] * n_desired + [0] * n_undesired)
        bias = float(regression.intercept_[0]) + math.log(n_undesired / n_desired)
        weight = torch.from_numpy(regression.coef_[0]).to(acts.desired.device)
        if float(weight.norm()) < ZERO_WEIGHT:
            raise ValueError(
                f"These features of the two sides ({type(features).__name__}) do not differ on average, so h is "
                "constant: pass other features, such as features=ot.Polynomial(), or other texts."
            )
        return cls(moved(phi, dtype=torch.float32), weight.float(), bias)

    def value(self, a: Activations) -> PerActivation:
        return self.features(a) @ self.weight + self.bias

    def grad(self, a: Activations) -> Activations:
        return self.gradient_function(a)

    @cached_property
    def gradient_function(self) -> GradientFunction:
        """∇h as a plain function and its parameters."""
        with torch.inference_mode(False), in_full(self.weight.device):  # it is cached, beyond the modes of this call
            return self.features.gradient_function(self.weight).raised(self.bias)

    def reduced(self) -> "Subspace[LogRatioBarrier] | None":
        """The same h in fewer, isometric coordinates (features.Reduced); None where the features have none."""
        reduced = self.features.reduced(self.weight)
        if reduced is None:
            return None
        inner = LogRatioBarrier(reduced.features, reduced.weight, self.bias + reduced.bias)
        return Subspace(reduced.basis, inner, elementwise=isinstance(reduced.features, (Linear, Squares)))


@dataclass(frozen=True, eq=False)
class Differentiated:
    """A barrier that has only `value`; autograd supplies `grad`."""

    barrier: Any

    def value(self, a: Activations) -> PerActivation:
        return self.barrier.value(a)

    def grad(self, a: Activations) -> Activations:
        return self.gradient_function(a)

    @property
    def gradient_function(self) -> GradientFunction:
        """∇h by autograd, with the barrier as its parameter."""
        return GradientFunction(grad_by_autograd, (self.barrier,), value=value_given)


def with_grad(barrier: Any) -> Barrier:
    """`barrier` itself where it has `value` and `grad`, else with a gradient by autograd.

    Raises ValueError for an object without a callable `value`, for a class and for a recipe of features.
    """
    if isinstance(barrier, type):
        raise ValueError(f"A barrier is an object; {barrier.__name__} is a class: pass {barrier.__name__}(…).")
    if callable(getattr(barrier, "fit", None)) and not hasattr(barrier, "value"):
        raise ValueError(
            f"A {type(barrier).__name__} is a recipe of features and no barrier: pass ot.LogRatioBarrier.fit(acts, "
            "recipe)."
        )
    if not callable(getattr(barrier, "value", None)):
        raise ValueError(f"A barrier needs a method value(a) -> h; {type(barrier).__name__} has none.")
    return barrier if callable(getattr(barrier, "grad", None)) else Differentiated(barrier)


def mean_difference(acts: ContrastiveActivations) -> LogRatioBarrier:
    """Log ratio of N(μ₊, I) to N(μ₋, I): h(a) = (μ₊ − μ₋)ᵀa − (‖μ₊‖² − ‖μ₋‖²)/2. ValueError where μ₊ = μ₋."""
    desired, undesired = acts.desired.double().mean(0), acts.undesired.double().mean(0)
    check_means(desired, undesired)
    bias = -0.5 * float(desired @ desired - undesired @ undesired)
    return LogRatioBarrier(Linear(normalize=False), (desired - undesired).float(), bias)


def auc(
    barrier: Barrier, desired: Float[Tensor, "n_desired d_model"], undesired: Float[Tensor, "n_undesired d_model"]
) -> float:
    """Area under the ROC curve of h: the share of (desired, undesired) pairs in the right order; ties count half."""
    high, low = barrier.value(desired), barrier.value(undesired)
    order = torch.searchsorted(low.sort().values, high) + torch.searchsorted(low.sort().values, high, right=True)
    return float(order.double().mean() / 2 / len(low))
