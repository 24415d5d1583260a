"""Features φ(a) of an activation, each with a closed-form vector–Jacobian product.

A *recipe* (`Polynomial`, `PolynomialSketch`, `RandomFourier`) says which features; `recipe.fit(samples)` draws or picks
what they need and returns a complete `FeatureMap`. `Linear` needs nothing and is both. With `normalize`, φ sees
x = a/‖a‖, so that h = wᵀφ lives on the sphere and its gradient is tangent to it.

Nothing in this file, or in the files it imports, knows that a language model exists.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.shapes import Activations, Basis, Features, Samples, Weight


def norm(a: Activations) -> Float[Tensor, "*batch 1"]:
    """‖a‖ without overflow or underflow: the entries are scaled by the largest before they are squared."""
    scale = a.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
    return torch.linalg.vector_norm(a / scale, dim=-1, keepdim=True) * scale


def unit(a: Activations) -> tuple[Activations, Float[Tensor, "*batch 1"]]:
    """a/r and r = ‖a‖ + 1e-12, the paper's way to keep a zero activation finite."""
    r = norm(a) + 1e-12
    return a / r, r


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
    """φ: R^d → R^k, complete; `vjp(a, w)` is ∇_a wᵀφ(a)."""

    normalize: bool

    def __call__(self, a: Activations) -> Features:
        return self._phi(self._unit(a)[0])

    def vjp(self, a: Activations, w: Weight) -> Activations:
        """J_φ(a)ᵀ w. With x = a/r, r = ‖a‖: (g − x(xᵀg))/r, where g is the same product at x."""
        x, r = self._unit(a)
        g = self._vjp(x, w)
        return g if r is None else (g - x * (x * g).sum(-1, keepdim=True)) / r

    def reduced(self, w: Weight) -> Reduced | None:
        """The coordinates in which wᵀφ is cheap, or None where there are none."""
        return None

    def _unit(self, a: Activations) -> tuple[Activations, Float[Tensor, "*batch 1"] | None]:
        return unit(a) if self.normalize else (a, None)

    @abstractmethod
    def _phi(self, x: Activations) -> Features: ...

    @abstractmethod
    def _vjp(self, x: Activations, w: Weight) -> Activations: ...


@runtime_checkable
class Recipe(Protocol):
    """Anything whose `fit` turns samples [n, d_model] into a complete feature map."""

    def fit(self, samples: Samples) -> FeatureMap: ...


@dataclass(frozen=True)
class Linear(FeatureMap):
    """φ(a) = a, or a/‖a‖ with `normalize`."""

    normalize: bool = True

    def fit(self, samples: Samples) -> "Linear":
        return self

    def _phi(self, x: Activations) -> Features:
        return x

    def _vjp(self, x: Activations, w: Weight) -> Activations:
        return w.expand_as(x)

    def reduced(self, w: Weight) -> Reduced:
        length = w.double().norm()
        basis = (w.double() / length.clamp_min(torch.finfo(torch.float64).tiny)).unsqueeze(1)
        weight = torch.stack([length, torch.zeros_like(length)])
        return Reduced(basis.to(w.dtype), Linear(self.normalize), weight.to(w.dtype), 0.0)


@dataclass(frozen=True)
class Squares(FeatureMap):
    """φ(x) = (x², x), elementwise: any quadratic form in the coordinates of its eigenvectors."""

    normalize: bool = True

    def _phi(self, x: Activations) -> Features:
        return torch.cat([x * x, x], dim=-1)

    def _vjp(self, x: Activations, w: Weight) -> Activations:
        quadratic, linear = w.chunk(2)
        return 2 * quadratic * x + linear


def check_kernel(degree: int, gamma: float, coef0: float) -> None:
    """Raise ValueError where (γ xᵀy + c₀)^degree is no kernel that the package knows."""
    if degree not in (1, 2, 3):
        raise ValueError(f"degree must be 1, 2 or 3, got {degree}.")
    if not gamma > 0 or not coef0 >= 0:
        raise ValueError(f"A polynomial kernel needs gamma > 0 and coef0 >= 0, got gamma={gamma}, coef0={coef0}.")
