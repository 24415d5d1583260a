"""h itself, up to a constant, from the parameters of its gradient in `integrate`: a flow may stop where h is high.

This file is sent to servers, so it uses torch alone. Each function takes x [*batch, d_model] and gives [*batch].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.integrate import product, sketch_spectra


def linear_value(x: Tensor, w: Tensor) -> Tensor:
    """wᵀx."""
    return x @ w


def squares_value(x: Tensor, curvature: Tensor, linear: Tensor) -> Tensor:
    """Σ (½ c x² + l x)."""
    return (x * torch.addcmul(linear, curvature, x, value=0.5)).sum(-1)


def kernel_value(x: Tensor, alpha: Tensor, landmarks: Tensor, degree: int, gamma: float, coef0: float) -> Tensor:
    """Σ_i α_i (γ z_iᵀx + c₀)^degree / (degree γ): `alpha` is that of the gradient."""
    return (gamma * x @ landmarks.T + coef0) ** degree @ alpha / (degree * gamma)


def fourier_value(x: Tensor, w: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """wᵀφ(x) with φ(x) = √(2/k) cos(Ωx + β)."""
    return (2 / len(phases)) ** 0.5 * torch.cos(x @ frequencies.T + phases) @ w


def sketch_value(
    x: Tensor, spectrum: Tensor, hashes: Tensor, signs: Tensor, n_components: int, gamma: float, coef0: float
) -> Tensor:
    """wᵀφ(x) of the tensor sketch; `spectrum` is rfft(w) as pairs of real numbers."""
    features = torch.fft.irfft(product(sketch_spectra(x, hashes, signs, n_components, gamma, coef0)), n=n_components)
    return features @ torch.fft.irfft(torch.view_as_complex(spectrum), n=n_components)


def value_given(a: Tensor, barrier: Any) -> Tensor:
    """h(a) from the barrier's own `barrier.value(a)`."""
    return barrier.value(a)
