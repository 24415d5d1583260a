"""h itself, up to a constant, from the parameters of its gradient in `integrate`: a flow may stop where h is high.

This file is sent to servers, so it uses torch alone. Each function takes x [*batch, d_model] and gives [*batch].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import product, sketch_spectra, unit


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


class UpTo(GradientFunction):
    """A gradient function of a known h, 0 where h ≥ until: the gradient of min(h, until)."""

    def __init__(self, function: GradientFunction, until: float) -> None:
        self.__dict__.update(function.__dict__)
        self.until = until

    def __call__(self, a: Tensor) -> Tensor:
        return GradientFunction.__call__(self, a).masked_fill((self.h(a) >= self.until).unsqueeze(-1), 0.0)

    def h(self, a: Tensor) -> Tensor:
        """h(a) [*batch]. Raises ValueError where a barrier of the user's gives another shape."""
        assert self.value is not None
        h = self.value(unit(a)[0] if self.normalize else a, *self.params) + self.plus
        if h.shape != a.shape[:-1]:
            raise ValueError(
                f"until compares h, one number per activation, {tuple(a.shape[:-1])}; this barrier's value has the "
                f"shape {tuple(h.shape)}."
            )
        return h

    def euler(self, a: Tensor, dt: Tensor | float) -> Tensor:
        """a + s v(a), 0 ≤ s ≤ dt: s ends where h would reach `until` if it went on as it begins, by dh/dt = vᵀ∇h."""
        v, h = GradientFunction.__call__(self, a), self.h(a).unsqueeze(-1)
        gradient = GradientFunction.__call__(self._with(unit_speed=False), a) if self.unit_speed else v
        rate = (v * gradient).sum(-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        rest = ((self.until - h) / rate).nan_to_num(nan=torch.inf)
        step = torch.minimum(torch.as_tensor(dt, dtype=v.dtype, device=v.device), rest)
        return a + v * step.masked_fill(h >= self.until, 0.0)  # an h that overflows is not high


def euler_up_to(field: Any, a: Tensor, dt: Tensor | float) -> Tensor:
    """An Euler step of an `UpTo`, or of a field that has one."""
    return (field if isinstance(field, UpTo) else field.gradient_function).euler(a, dt)
