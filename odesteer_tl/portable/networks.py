"""Small networks and what is steered by them, as plain functions over tensors.

A network is its weights (W₁, …, Wₙ), each [out, in] with one row in the last, its biases, and the name of what stands
between the layers, "relu" or "gelu". The rules of `integrate` hold: nothing here that a server does not have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odesteer_tl.portable.integrate import norm, per_activation, unit_length


def network(x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...], kind: str) -> Tensor:
    """f(x) [*batch] = Wₙ s(… s(W₁x + b₁) …) + bₙ."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = x @ weight.T + bias
        x = torch.relu(z) if kind == "relu" else torch.nn.functional.gelu(z)
    return x @ weights[-1][0] + biases[-1][0]


def network_grad(x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...], kind: str) -> Tensor:
    """∇f(x) [*batch, d_model] by the chain rule, backwards through the layers; 0 is where relu is taken to be flat."""
    slopes = []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = x @ weight.T + bias
        if kind == "relu":
            x, slope = torch.relu(z), (z > 0).to(z.dtype)
        else:
            below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
            x, slope = torch.nn.functional.gelu(z), below + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        slopes.append(slope)
    g = weights[-1][0].expand(*x.shape[:-1], -1)
    for weight, slope in zip(reversed(weights[:-1]), reversed(slopes), strict=True):
        g = (g * slope) @ weight
    return g


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """∠(a, b) [*batch] in [0, π], exact where the two are all but parallel, as arccos of a cosine is not."""
    a, b = unit_length(a), unit_length(b)
    return 2 * torch.atan2(norm(a - b), norm(a + b)).squeeze(-1)


def turning(
    a: Tensor, theta: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(which, γ₁, p): where θᵀa < 0, the angle π·sigmoid(f(a)) [*batch, 1], and ‖a‖ times the way to turn.

    The way is the unit vector of span{a, θ} at a right angle to a, on the side of θ. It is lost where a points against
    θ, to rounding: such a are not turned.
    """
    r = norm(a).clamp_min(torch.finfo(a.dtype).tiny)
    x, pole = a / r, unit_length(theta)
    across = pole - x * (x @ pole).unsqueeze(-1)
    way = unit_length(across)
    way = unit_length(way - x * (x * way).sum(-1, keepdim=True))  # what rounding left along x, where across is short
    which = ((x @ pole).unsqueeze(-1) < 0) & (norm(across) > 100 * torch.finfo(a.dtype).eps)
    angle = math.pi * torch.sigmoid(network(a, weights, biases, "gelu")).unsqueeze(-1)
    return which, angle, r * way


def turned(
    a: Tensor,
    T: float | int | Tensor,
    theta: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
) -> Tensor:
    """a turned by T γ₁(a) towards its reflection in the hyperplane θᵀa = 0, where θᵀa < 0; else a, bit for bit.

    cos(γ) a + sin(γ) p is [sin(γ) a_H + sin(γ₂ − γ) a]/sin γ₂ without the division, which fails at γ₂ = ∠(a, a_H) → 0.
    """
    which, angle, way = turning(a, theta, weights, biases)
    angle = per_activation(T, a) * angle
    return torch.where(which, torch.cos(angle) * a + torch.sin(angle) * way, a)


def turned_in_plane(a: Tensor, T: float | int | Tensor, plane: Tensor, target: float | None, adaptive: bool) -> Tensor:
    """a turned by the angle T in the plane of two orthonormal rows, from the first towards the second: its part across
    the plane stays, and so does ‖a‖.

    With a `target` it is turned towards that angle from the first row, the shorter way, and no further than there; a
    negative T turns it away, at most to the opposite. `adaptive`: only where a's part along the first row is positive.
    """
    y = a @ plane.T
    angle = per_activation(T, a)
    angle = angle if isinstance(angle, Tensor) else torch.full((), angle, dtype=a.dtype, device=a.device)
    if target is not None:
        gap = target - torch.atan2(y[..., 1:], y[..., :1])
        gap = torch.atan2(torch.sin(gap), torch.cos(gap))
        angle = gap - torch.sign(gap) * (gap.abs() - angle).clamp(0, math.pi)
    across = torch.stack([-y[..., 1], y[..., 0]], dim=-1)
    end = a + (torch.sin(angle) * across - 2 * torch.sin(angle / 2) ** 2 * y) @ plane
    return torch.where(y[..., :1] > 0, end, a) if adaptive else end


def turning_speed(a: Tensor, theta: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]) -> Tensor:
    """The derivative of `turned` by T at T = 0: γ₁(a) p where θᵀa < 0, else 0."""
    which, angle, way = turning(a, theta, weights, biases)
    return torch.where(which, angle * way, torch.zeros_like(a))
