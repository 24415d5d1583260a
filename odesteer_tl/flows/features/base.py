"""Features φ(a) of an activation, each with a closed-form vector–Jacobian product.

A *recipe* (`Polynomial`, `PolynomialSketch`, `RandomFourier`) says which features; `recipe.fit(samples)` draws or picks
what they need and returns a complete `FeatureMap`. `Linear` needs nothing and is both. With `normalize`, φ sees
x = a/‖a‖, so that h = wᵀφ lives on the sphere and its gradient is tangent to it.

Nothing in this file, or in the files it imports, knows that a language model exists.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from odesteer_tl._shapes import Activations, Basis, Desired, Features, Samples, Undesired, Weight
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import linear_grad, squares_grad, unit

ROWS = 128
"""How many activations are in float64 at once while something is fitted to them; more are not faster."""


class Reduced(NamedTuple):
    """wᵀφ(a) in the coordinates (y, p): y = Uᵀa and p the length of the rest a − UUᵀa.

    `basis` U [d_model, m] is orthonormal; `features`, `weight` and `bias` give the same number on the m + 1
    coordinates. The coordinates are isometric, so gradients and their norms carry over as they are.
    """

    basis: Basis
    features: "FeatureMap"
    weight: Weight
    bias: float


class FeatureMap(ABC):
    """φ: R^d → R^k, complete; `gradient_function(w)` is the field ∇wᵀφ in plain numbers, `vjp(a, w)` its value at a."""

    normalize: bool

    def __call__(self, a: Activations) -> Features:
        return self._phi(unit(a)[0] if self.normalize else a)

    def vjp(self, a: Activations, w: Weight) -> Activations:
        """J_φ(a)ᵀ w."""
        return self.gradient_function(w)(a)

    def reduced(self, w: Weight) -> Reduced | None:
        """The coordinates in which wᵀφ is cheap, or None where there are none."""
        return None

    @abstractmethod
    def gradient_function(self, w: Weight) -> GradientFunction:
        """a ↦ ∇_a wᵀφ(a): a function of `integrate`, and its numbers."""

    @abstractmethod
    def _phi(self, x: Activations) -> Features: ...


@runtime_checkable
class Recipe(Protocol):
    """Anything whose `fit` turns samples [n, d_model] into a complete feature map.

    One that needs few rows, or the two sides apart, may have `fit_sides(desired, undesired)`, which a barrier's fit
    then calls instead: all rows together in float64 are three times the memory of the activations.
    """

    def fit(self, samples: Samples) -> FeatureMap: ...


def check_fitted_map(features: Any) -> None:
    """Raise ValueError for a class, or a recipe that was not fitted, where a feature map is wanted."""
    name = features.__name__ if isinstance(features, type) else type(features).__name__
    if isinstance(features, type) or (not callable(features) and callable(getattr(features, "fit", None))):
        made = f"{name}(…)" if isinstance(features, type) else "recipe"
        raise ValueError(
            f"{name} is a {'class' if isinstance(features, type) else 'recipe'}, and here its features are wanted: "
            f"{made}.fit(samples) gives them, of samples [n, d_model]."
        )
    if not callable(features) or not callable(getattr(features, "gradient_function", None)):
        raise ValueError(f"Features are a FeatureMap, φ(a) with gradient_function(w); a {name} is none.")


def check_recipe(recipe: Any) -> None:
    """Raise ValueError for a class, or a map that is fitted already, where a recipe is wanted."""
    if isinstance(recipe, type):
        raise ValueError(f"features is a recipe, and {recipe.__name__} is its class: write {recipe.__name__}().")
    if not callable(getattr(recipe, "fit", None)) and not callable(getattr(recipe, "fit_sides", None)):
        raise ValueError(
            f"features is a recipe, such as ot.Polynomial(), which the fit fits; a {type(recipe).__name__} has no "
            "fit(samples). A map that is fitted already goes into ot.LogRatioBarrier(features, weight, bias)."
        )


def fit_to_sides(recipe: Recipe, desired: Desired, undesired: Undesired) -> FeatureMap:
    """The recipe fitted to both sides: by its `fit_sides`, or by `fit` to all rows in float64."""
    apart: Any = getattr(recipe, "fit_sides", None)
    if apart is None:
        return recipe.fit(torch.cat([desired, undesired]).double())
    return apart(desired, undesired)


def features_of(phi: FeatureMap, desired: Desired, undesired: Undesired) -> Features:
    """φ of all rows [n, k], desired first, in float64 on the CPU; few rows at a time are held in float64 before φ.

    One tensor takes them all: many small ones between the large keep the memory of those from being used again.
    """
    found, done = None, 0
    for rows in (*desired.split(ROWS), *undesired.split(ROWS)):
        part = phi(rows.double())
        if found is None:
            found = torch.empty(len(desired) + len(undesired), part.shape[1], dtype=torch.float64)
        found[done : done + len(part)] = part
        done += len(part)
    assert found is not None  # neither side is empty
    return found


@dataclass(frozen=True)
class Linear(FeatureMap):
    """φ(a) = a, or a/‖a‖ with `normalize`."""

    normalize: bool = True

    def fit(self, samples: Samples) -> "Linear":
        return self

    def fit_sides(self, desired: Desired, undesired: Undesired) -> "Linear":
        return self

    def gradient_function(self, w: Weight) -> GradientFunction:
        return GradientFunction(linear_grad, (w,), self.normalize)

    def _phi(self, x: Activations) -> Features:
        return x

    def reduced(self, w: Weight) -> Reduced:
        length = w.double().norm()
        basis = (w.double() / length.clamp_min(torch.finfo(torch.float64).tiny)).unsqueeze(1)
        weight = torch.stack([length, torch.zeros_like(length)])
        return Reduced(basis.to(w.dtype), Linear(self.normalize), weight.to(w.dtype), 0.0)


@dataclass(frozen=True)
class Squares(FeatureMap):
    """φ(x) = (x², x), elementwise: any quadratic form in the coordinates of its eigenvectors."""

    normalize: bool = True

    def gradient_function(self, w: Weight) -> GradientFunction:
        quadratic, linear = w.chunk(2)
        return GradientFunction(squares_grad, (2 * quadratic, linear), self.normalize)

    def _phi(self, x: Activations) -> Features:
        return torch.cat([x * x, x], dim=-1)


def farthest(degree: int, gamma: float, coef0: float, normalize: bool) -> float | None:
    """The ‖a‖ from which on the slope of a cubic kernel has the direction that it has at infinity: c₀ is 1e-12 of γ‖a‖.

    Its length grows like ‖a‖², and leaves float32 at 1e19. None where no such length is met.
    """
    return None if degree < 3 or normalize else 1e12 * (1 + coef0) / gamma


def check_kernel(degree: int, gamma: float, coef0: float) -> None:
    """Raise ValueError where (γ xᵀy + c₀)^degree is no kernel that the package knows."""
    if degree not in (1, 2, 3):
        raise ValueError(f"degree must be 1, 2 or 3, got {degree}.")
    if not gamma > 0 or not coef0 >= 0:
        raise ValueError(f"A polynomial kernel needs gamma > 0 and coef0 >= 0, got gamma={gamma}, coef0={coef0}.")
