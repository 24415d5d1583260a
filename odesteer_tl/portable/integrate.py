"""The mathematics of a flow, as plain functions over tensors: norms, gradients, solver steps, coordinates, the path.

The classes of the package call these functions, and their source is sent to remote servers, where the package is not
installed. So this file imports nothing that a server does not have. A function within a function has no annotations,
because the server compiles its source without the `__future__` import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# --- Lengths


def norm(a: Tensor) -> Tensor:
    """‖a‖ [*batch, 1] without overflow or underflow: the entries are scaled by the largest before they are squared."""
    scale = a.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
    return torch.linalg.vector_norm(a / scale, dim=-1, keepdim=True) * scale


def plain_norm(a: Tensor) -> Tensor:
    """‖a‖ [*batch, 1] without scaling: correct from 1e-19 to 1e19 in float32, and five times as fast as `norm`."""
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)


def unit(a: Tensor) -> tuple[Tensor, Tensor]:
    """a/r and r = ‖a‖ + 1e-12, the paper's way to keep a zero activation finite."""
    r = norm(a) + 1e-12
    return a / r, r


def unit_length(g: Tensor) -> Tensor:
    """g/‖g‖, and 0 where g vanishes."""
    return g / norm(g).clamp_min(torch.finfo(g.dtype).tiny)


def per_activation(T: float | int | Tensor, a: Tensor) -> Tensor | float:
    """T in a form that multiplies `a`: a float, or a tensor that broadcasts over the leading axes of `a`.

    Raises ValueError unless the axes of T are the first of the leading axes of `a`.
    """
    if not isinstance(T, Tensor):
        return float(T)
    if T.ndim > a.ndim - 1 or T.shape != a.shape[: T.ndim]:
        raise ValueError(
            f"T has shape {tuple(T.shape)}, activations {tuple(a.shape)}: a tensor T needs one value per row, "
            f"shape {tuple(a.shape[:1])}, or one per activation, shape {tuple(a.shape[:-1])}."
        )
    T = T.to(device=a.device, dtype=a.dtype)
    return T.reshape(T.shape + (1,) * (a.ndim - T.ndim))


# --- Gradients: ∇h(x) [*batch, d_model] at x, with the parameters of h


def linear_grad(x: Tensor, w: Tensor) -> Tensor:
    """∇ wᵀx = w, for every x."""
    return w.expand_as(x)


def squares_grad(x: Tensor, curvature: Tensor, linear: Tensor) -> Tensor:
    """∇ Σ (½ c x² + l x), elementwise: c x + l."""
    return torch.addcmul(linear, curvature, x)


def kernel_grad(x: Tensor, alpha: Tensor, landmarks: Tensor, degree: int, gamma: float, coef0: float) -> Tensor:
    """Σ_i α_i (γ z_iᵀx + c₀)^(degree − 1) z_i: ∇ of a polynomial kernel expansion over `landmarks` z [m, d_model]."""
    return (alpha * (gamma * x @ landmarks.T + coef0) ** (degree - 1)) @ landmarks


def fourier_grad(x: Tensor, w: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """∇ wᵀφ(x) with φ(x) = √(2/k) cos(Ωx + β), `frequencies` Ω [k, d_model] and `phases` β [k]."""
    scale = -((2 / len(phases)) ** 0.5)
    return (scale * w * torch.sin(x @ frequencies.T + phases)) @ frequencies


def sketch_spectra(
    x: Tensor, hashes: Tensor, signs: Tensor, n_components: int, gamma: float, coef0: float
) -> list[Tensor]:
    """rfft(CS_k(x̃)) of x̃ = (√γ x, √c₀) for every k.

    CS_k adds coordinate i, times `signs[k, i]`, into bucket `hashes[k, i]` of `n_components`.
    """
    x = gamma**0.5 * x
    if coef0 != 0:
        x = torch.nn.functional.pad(x, (0, 1), value=coef0**0.5)
    empty = x.new_zeros((*x.shape[:-1], n_components))
    pairs = zip(hashes, signs, strict=True)
    return [torch.fft.rfft(empty.index_add(-1, bucket, x * sign)) for bucket, sign in pairs]


def sketch_grad(
    x: Tensor, spectrum: Tensor, hashes: Tensor, signs: Tensor, n_components: int, gamma: float, coef0: float
) -> Tensor:
    """∇ wᵀφ(x) with φ(x) = irfft(∏_k rfft(CS_k(x̃))), the tensor sketch: w correlated with the other factors.

    `spectrum` [n_components // 2 + 1, 2] is rfft(w) as pairs of real numbers: it is the same at every step.
    """
    spectra, g = sketch_spectra(x, hashes, signs, n_components, gamma, coef0), torch.zeros_like(x)
    weights = torch.view_as_complex(spectrum)
    for k, (bucket, sign) in enumerate(zip(hashes[:, : x.shape[-1]], signs[:, : x.shape[-1]], strict=True)):
        others = spectra[:k] + spectra[k + 1 :]
        c = torch.fft.irfft(weights * product(others).conj() if others else weights, n=n_components)
        g = torch.addcmul(g, c.index_select(-1, bucket), sign)
    return gamma**0.5 * g


def product(factors: list[Tensor]) -> Tensor:
    """The elementwise product of one tensor or more."""
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def on_sphere(a: Tensor, grad: Callable[..., Tensor], params: tuple[Any, ...]) -> Tensor:
    """∇_a h(a/‖a‖) by the chain rule: (g − x(xᵀg))/r, where x = a/r and g = grad(x, *params)."""
    x, r = unit(a)
    return tangent(grad(x, *params), x) / r


def along_sphere(a: Tensor, grad: Callable[..., Tensor], params: tuple[Any, ...]) -> Tensor:
    """∇_a h(a/‖a‖) scaled to unit length; this does not depend on ‖a‖. Lengths are plain norms."""
    x = a / plain_norm(a).clamp_min(1e-12)
    g = tangent(grad(x, *params), x)
    return g / plain_norm(g).clamp_min(torch.finfo(g.dtype).tiny ** 0.5)  # the square of a smaller length is 0


def tangent(g: Tensor, x: Tensor) -> Tensor:
    """g − x(xᵀg): the part of g across the unit vector x."""
    return torch.addcmul(g, x, (x * g).sum(-1, keepdim=True), value=-1)


def affine_pull(x: Tensor, stretch: Tensor | tuple[Tensor, Tensor], source: Tensor, shift: Tensor) -> Tensor:
    """M(x − s) + c with M symmetric: the displacement of x under an affine map. `stretch` is M = A − I, or (U, λ) with
    M = UλUᵀ; `source` is s, `shift` is c."""
    if isinstance(stretch, Tensor):
        return (x - source) @ stretch + shift
    vectors, values = stretch
    return ((x - source) @ vectors * values) @ vectors.T + shift


def gated_pull(x: Tensor, stretch: Any, source: Tensor, shift: Tensor, w: Tensor, bias: float) -> Tensor:
    """`affine_pull` where wᵀx + bias ≤ 0, else 0."""
    outside = (x @ w + bias > 0).unsqueeze(-1)
    return affine_pull(x, stretch, source, shift).masked_fill(outside, 0.0)


def grad_by_autograd(a: Tensor, barrier: Any) -> Tensor:
    """∇h(a) by automatic differentiation of `barrier.value`, in any grad mode."""
    with torch.inference_mode(False), torch.enable_grad():
        return torch.func.grad(lambda x: barrier.value(x).sum())(a.clone() if a.is_inference() else a)


def grad_given(a: Tensor, barrier: Any) -> Tensor:
    """∇h(a) from the barrier's own `barrier.grad(a)`."""
    return barrier.grad(a)


# --- Steps of ȧ = v(a), and the only time loop


def euler(field: Callable[[Tensor], Tensor], a: Tensor, dt: Tensor | float) -> Tensor:
    """a + dt v(a): 1st order, 1 evaluation."""
    v = field(a)
    return torch.addcmul(a, dt, v) if isinstance(dt, Tensor) else torch.add(a, v, alpha=dt)


def midpoint(field: Callable[[Tensor], Tensor], a: Tensor, dt: Tensor | float) -> Tensor:
    """a + dt v(a + dt v(a)/2): 2nd order, 2 evaluations."""
    return a + dt * field(a + 0.5 * dt * field(a))


def rk4(field: Callable[[Tensor], Tensor], a: Tensor, dt: Tensor | float) -> Tensor:
    """The classical tableau of Kutta: 4th order, 4 evaluations."""
    k1 = field(a)
    k2 = field(a + 0.5 * dt * k1)
    k3 = field(a + 0.5 * dt * k2)
    k4 = field(a + dt * k3)
    return a + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def path(
    field: Callable[[Tensor], Tensor], a: Tensor, T: float | int | Tensor, step: Callable[..., Tensor], steps: int
) -> Iterator[Tensor]:
    """Yields a(0), a(T/steps), …, a(T), each by `step(field, a, dt)` from the last. Negative T flows backwards.

    Raises ValueError for steps < 1, and for a T whose shape does not fit `a`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}. For no steering use T=0.")
    dt = per_activation(T, a) / steps
    yield a
    for _ in range(steps):
        a = step(field, a, dt)
        yield a


# --- The coordinates (y, p) of an activation with respect to a subspace, and the flow in them


def enter(a: Tensor, basis: Tensor) -> Tensor:
    """(y, p) [*batch, m + 1] of an activation: y = Uᵀa, p = ‖a − UUᵀa‖, with `basis` U [d_model, m] orthonormal.

    p is kept above rounding error, so that `leave` works even where a lies in the span. Where ‖a‖ = 0, p is 0, and no
    field changes that. Lengths are plain norms.
    """
    y, limits = a @ basis, torch.finfo(a.dtype)
    scale = plain_norm(a).clamp_max(limits.max)
    inside = plain_norm(y) / (scale + limits.tiny)
    p = scale * (1 - inside * inside).clamp_min(limits.eps**2).sqrt()
    return torch.cat([y, p], dim=-1)


def leave(a: Tensor, start: Tensor, end: Tensor, rows: Tensor) -> Tensor:
    """The activation at the coordinates `end`, given `a` at `start`: U y + σ(a − UUᵀa), where σ is the growth of p.

    `rows` [m, d_model] is a contiguous copy of Uᵀ, which halves the time for a few activations.
    """
    tiny = torch.finfo(a.dtype).tiny  # where p = 0 it stays 0, so σ = 1
    growth = (end[..., -1:] + tiny) / (start[..., -1:] + tiny)
    across = torch.addcmul(end, growth, start, value=-1)[..., :-1]
    return torch.addcmul(across @ rows, growth, a)


def flowed(
    a: Tensor,
    T: float | int | Tensor,
    field: Callable[[Tensor], Tensor],
    step: Callable[..., Tensor],
    steps: int,
    basis: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """a(T) from a = a(0). With a `basis` [d_model, m] the field acts on the m + 1 coordinates of `enter`.

    `rows` is a contiguous copy of the transpose of `basis`, for `leave`, if there is one.
    """
    now = start = a if basis is None else enter(a, basis)
    for point in path(field, start, T, step, steps):
        now = point
    return now if basis is None else leave(a, start, now, basis.T if rows is None else rows)
