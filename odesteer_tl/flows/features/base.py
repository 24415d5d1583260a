"""Features φ(a) of an activation, each with a closed-form vector–Jacobian product.

A *recipe* (`Polynomial`, `PolynomialSketch`, `RandomFourier`) names the features; `recipe.fit(samples)` draws or
chooses their parameters and returns a fitted `FeatureMap`. `Linear` has no parameters and is both. With `normalize`,
φ takes x = a/‖a‖, so h = wᵀφ depends on the direction of a alone and its gradient is tangent to the sphere.

Neither this file nor its imports use a language model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from odesteer_tl._shapes import Activations, Basis, Desired, Features, Samples, Undesired, Weight
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import linear_grad, squares_grad, unit
from odesteer_tl.portable.values import linear_value, squares_value

ROWS = 128
"""How many activations are converted to float64 at once during a fit; more are not faster."""


class Reduced(NamedTuple):
    """wᵀφ(a) in the coordinates (y, p): y = Uᵀa and p the length of the rest a − UUᵀa.

    `basis` U [d_model, m] is orthonormal; `features`, `weight` and `bias` give the same number on the m + 1
    coordinates. The coordinates are isometric, so gradients keep their norms.
    """

    basis: Basis
    features: "FeatureMap"
    weight: Weight
    bias: float


class FeatureMap(ABC):
    """A fitted φ: R^d → R^k. `gradient_function(w)` is ∇wᵀφ as a plain function, `vjp(a, w)` is its value at a."""

    normalize: bool

    def __call__(self, a: Activations) -> Features:
        return self._phi(unit(a)[0] if self.normalize else a)

    def vjp(self, a: Activations, w: Weight) -> Activations:
        """J_φ(a)ᵀ w."""
        return self.gradient_function(w)(a)

    def reduced(self, w: Weight) -> Reduced | None:
        """Coordinates in which wᵀφ is cheaper, or None where the map has none."""
        return None

    @abstractmethod
    def gradient_function(self, w: Weight) -> GradientFunction:
        """a ↦ ∇_a wᵀφ(a): a function of `portable/integrate.py`, and its parameters."""

    @abstractmethod
    def _phi(self, x: Activations) -> Features: ...


@runtime_checkable
class Recipe(Protocol):
    """Any object whose `fit` turns samples [n, d_model] into a fitted feature map.

    A recipe that needs few rows, or the sides separately, may define `fit_sides(desired, undesired)`. A barrier's fit
    then calls that instead, which saves memory: all rows in float64 take three times that of the activations.
    """

    def fit(self, samples: Samples) -> FeatureMap: ...


def check_fitted_map(features: Any) -> None:
    """Raise ValueError for a class or a recipe in place of a fitted feature map."""
    name = features.__name__ if isinstance(features, type) else type(features).__name__
    if isinstance(features, type) or (not callable(features) and callable(getattr(features, "fit", None))):
        made = f"{name}(…)" if isinstance(features, type) else "recipe"
        raise ValueError(
            f"{name} is a {'class' if isinstance(features, type) else 'recipe'}, and a fitted map is needed here: pass "
            f"{made}.fit(samples), samples [n, d_model]."
        )
    if not callable(features) or not callable(getattr(features, "gradient_function", None)):
        raise ValueError(f"Features are a FeatureMap, φ(a) with gradient_function(w); got a {name}.")


def check_recipe(recipe: Any) -> None:
    """Raise ValueError for a class, or a fitted map, in place of a recipe."""
    if isinstance(recipe, type):
        raise ValueError(f"features is a recipe, and {recipe.__name__} is a class: pass {recipe.__name__}().")
    if not callable(getattr(recipe, "fit", None)) and not callable(getattr(recipe, "fit_sides", None)):
        raise ValueError(
            f"features is a recipe, such as ot.Polynomial(), with fit(samples); a {type(recipe).__name__} has no fit. "
            "Pass a fitted map to ot.LogRatioBarrier(features, weight, bias)."
        )


def fit_to_sides(recipe: Recipe, desired: Desired, undesired: Undesired) -> FeatureMap:
    """Fit the recipe to both sides: by its `fit_sides` if it has one, else by `fit` on all rows in float64."""
    fit_sides: Any = getattr(recipe, "fit_sides", None)
    if fit_sides is None:
        return recipe.fit(torch.cat([desired, undesired]).double())
    return fit_sides(desired, undesired)


def features_of(phi: FeatureMap, desired: Desired, undesired: Undesired) -> Features:
    """φ of all rows [n, k], desired first, in float64 on the CPU; few rows at a time are converted to float64.

    The result is allocated once: many small tensors would fragment the memory.
    """
    features, done = None, 0
    for rows in (*desired.split(ROWS), *undesired.split(ROWS)):
        part = phi(rows.double())
        if features is None:
            features = torch.empty(len(desired) + len(undesired), part.shape[1], dtype=torch.float64, device="cpu")
        features[done : done + len(part)] = part
        done += len(part)
    assert features is not None  # neither side is empty
    return features


@dataclass(frozen=True)
class Linear(FeatureMap):
    """φ(a) = a, or a/‖a‖ with `normalize`."""

    normalize: bool = True

    def fit(self, samples: Samples) -> "Linear":
        return self

    def fit_sides(self, desired: Desired, undesired: Undesired) -> "Linear":
        return self

    def gradient_function(self, w: Weight) -> GradientFunction:
        return GradientFunction(linear_grad, (w,), self.normalize, value=linear_value)

    def _phi(self, x: Activations) -> Features:
        return x

    def reduced(self, w: Weight) -> Reduced:
        length = w.double().norm()
        basis = (w.double() / length.clamp_min(torch.finfo(torch.float64).tiny)).unsqueeze(1)
        weight = torch.stack([length, torch.zeros_like(length)])
        return Reduced(basis.to(w.dtype), Linear(self.normalize), weight.to(w.dtype), 0.0)


@dataclass(frozen=True)
class Squares(FeatureMap):
    """φ(x) = (x², x), elementwise: a quadratic form in the coordinates of its eigenvectors."""

    normalize: bool = True

    def gradient_function(self, w: Weight) -> GradientFunction:
        quadratic, linear = w.chunk(2)
        return GradientFunction(squares_grad, (2 * quadratic, linear), self.normalize, value=squares_value)

    def _phi(self, x: Activations) -> Features:
        return torch.cat([x * x, x], dim=-1)


def farthest(degree: int, gamma: float, coef0: float, normalize: bool) -> float | None:
    """The ‖a‖ beyond which the gradient of a cubic kernel has its direction at infinity: c₀ is 1e-12 of γ‖a‖.

    The gradient grows like ‖a‖² and overflows float32 at ‖a‖ = 1e19. None for kernels where that does not happen.
    """
    return None if degree < 3 or normalize else 1e12 * (1 + coef0) / gamma


def check_kernel(degree: int, gamma: float, coef0: float) -> None:
    """Raise ValueError for a degree, gamma or coef0 for which (γ xᵀy + c₀)^degree is not supported."""
    if degree not in (1, 2, 3):
        raise ValueError(f"degree must be 1, 2 or 3, got {degree}.")
    if not gamma > 0 or not coef0 >= 0:
        raise ValueError(f"A polynomial kernel needs gamma > 0 and coef0 >= 0, got gamma={gamma}, coef0={coef0}.")
