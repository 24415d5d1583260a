"""Random Fourier features of the Gaussian kernel, for the paper's ablation."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Features, Samples, Weight
from odesteer_tl.flows.features.base import FeatureMap, Reduced
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import fourier_grad, unit
from odesteer_tl.portable.values import fourier_value


@dataclass(frozen=True, eq=False)
class Fourier(FeatureMap):
    """Random Fourier features of the Gaussian kernel: φ(a) = √(2/k) cos(Ωx + β)."""

    frequencies: Float[Tensor, "k d_model"]
    phases: Float[Tensor, " k"]
    normalize: bool = False

    def _phi(self, x: Activations) -> Features:
        return (2 / len(self.phases)) ** 0.5 * torch.cos(x @ self.frequencies.T + self.phases)

    def gradient_function(self, w: Weight) -> GradientFunction:
        params = (w, self.frequencies, self.phases)
        return GradientFunction(fourier_grad, params, self.normalize, value=fourier_value)

    def reduced(self, w: Weight) -> Reduced:
        _, lengths, rows = torch.linalg.svd(self.frequencies.double(), full_matrices=False)
        basis = rows[lengths > 1e-13 * lengths[0]].T
        inner = torch.nn.functional.pad(self.frequencies.double() @ basis, (0, 1))
        return Reduced(basis.to(w.dtype), Fourier(inner.to(w.dtype), self.phases, self.normalize), w, 0.0)


@dataclass(frozen=True)
class RandomFourier:
    """Features of the Gaussian kernel exp(−‖x − y‖²/2σ²), for the paper's ablation; raw activations by default.

    Ω ~ N(0, 1/σ²), β ~ U(0, 2π), drawn by `seed` on the CPU. `sigma="median"` takes the median distance between the
    samples (at most 1,000 of them, drawn by `seed`). Raises ValueError for a sigma that is not positive.
    Source: Rahimi & Recht, Random features for large-scale kernel machines, 2007.
    """

    n_components: int = 1000
    sigma: float | Literal["median"] = "median"
    normalize: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {self.n_components}.")
        if self.sigma != "median" and not self.sigma > 0:
            raise ValueError(f'sigma must be positive or "median", got {self.sigma}.')

    def fit(self, samples: Samples) -> Fourier:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.n_components, samples.shape[1])
        frequencies = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        phases = 2 * torch.pi * torch.rand(self.n_components, generator=generator, dtype=torch.float64, device="cpu")
        x = unit(samples)[0] if self.normalize else samples
        sigma = self.sigma
        if sigma == "median":
            few = x[torch.randperm(len(x), generator=generator, device="cpu")[:1000].to(x.device)]
            sigma = float(torch.pdist(few.double()).median()) if len(few) > 1 else 0.0
            if not sigma > 0:
                raise ValueError('sigma="median" needs samples that differ; pass sigma as a number.')
        return Fourier((frequencies / sigma).to(samples), phases.to(samples), self.normalize)
