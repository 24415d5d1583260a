"""A count sketch of the polynomial kernel: the paper's features, kept for parity."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl._shapes import Activations, Desired, Features, Samples, Undesired, Weight
from odesteer_tl.flows.features.base import FeatureMap, check_kernel, farthest
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import product, sketch_grad, sketch_spectra
from odesteer_tl.portable.values import sketch_value


@dataclass(frozen=True, eq=False)
class Sketch(FeatureMap):
    """Tensor sketch of the polynomial kernel: φ(a) = irfft(∏_k rfft(CS_k(x̃))), x̃ = (√γ x, √c₀).

    CS_k adds coordinate i, times `signs[k, i]`, into bucket `hashes[k, i]`. E[φ(a)·φ(b)] = (γ xᵀy + c₀)^degree.
    """

    hashes: Int[Tensor, "degree inputs"]
    signs: Float[Tensor, "degree inputs"]
    n_components: int
    gamma: float
    coef0: float
    normalize: bool = True

    @property
    def _params(self) -> tuple[Tensor, Tensor, int, float, float]:
        return self.hashes, self.signs, self.n_components, self.gamma, self.coef0

    def gradient_function(self, w: Weight) -> GradientFunction:
        spectrum = torch.view_as_real(torch.fft.rfft(w)).contiguous()
        beyond = farthest(len(self.hashes), self.gamma, self.coef0, self.normalize)
        params = (spectrum, *self._params)
        return GradientFunction(sketch_grad, params, self.normalize, farthest=beyond, value=sketch_value)

    def _phi(self, x: Activations) -> Features:
        return torch.fft.irfft(product(sketch_spectra(x, *self._params)), n=self.n_components)


@dataclass(frozen=True, eq=False)
class PolynomialSketch:
    """The paper's features: a count sketch of the polynomial kernel with `n_components` buckets.

    Hashes, then signs, are drawn by `seed` on the CPU; `hashes` and `signs` [degree, d_model + 1 (d_model where
    coef0 = 0)] replace the draw. Raises ValueError where their shapes or values are wrong. Sources: Pham & Pagh, Fast
    and scalable polynomial kernels via explicit feature maps, 2013; arXiv:2602.17560.
    """

    n_components: int = 8000
    degree: Literal[1, 2, 3] = 2
    gamma: float = 0.1
    coef0: float = 1.0
    normalize: bool = True
    seed: int = 0
    hashes: Int[Tensor, "degree inputs"] | None = None
    signs: Int[Tensor, "degree inputs"] | None = None

    def __post_init__(self) -> None:
        check_kernel(self.degree, self.gamma, self.coef0)
        if self.n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {self.n_components}.")
        if (self.hashes is None) != (self.signs is None):
            raise ValueError("Pass both hashes and signs, or neither.")

    def fit_sides(self, desired: Desired, undesired: Undesired) -> Sketch:
        """As `fit`: only the width of the samples matters."""
        return self.fit(desired[:1].double())

    def fit(self, samples: Samples) -> Sketch:
        shape = (self.degree, samples.shape[1] + (self.coef0 != 0))
        generator = torch.Generator().manual_seed(self.seed)
        hashes, signs = self.hashes, self.signs
        if hashes is None or signs is None:
            hashes = torch.randint(self.n_components, shape, generator=generator, device="cpu")
            signs = 2 * torch.randint(2, shape, generator=generator, device="cpu") - 1
        for name, tensor in (("hashes", hashes), ("signs", signs)):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must be {shape} for these activations, got {tuple(tensor.shape)}.")
        if int(hashes.min()) < 0 or int(hashes.max()) >= self.n_components:
            raise ValueError(f"hashes must lie in 0 … {self.n_components - 1}: they name the n_components buckets.")
        hashes, signs = hashes.to(samples.device), signs.to(samples)
        return Sketch(hashes, signs, self.n_components, self.gamma, self.coef0, self.normalize)
