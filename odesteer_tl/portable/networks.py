"""Small networks and the rotations that they steer by, as plain functions over tensors.

A network is its weights (W₁, …, Wₙ), each [out, in] with one row in the last, its biases, and the name of its
activation function, "relu" or "gelu". As in `integrate`, nothing is imported that a server does not have.
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
    """∇f(x) [*batch, d_model] by the chain rule, backwards through the layers. The derivative of relu at 0 is 0."""
    derivatives = []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = x @ weight.T + bias
        if kind == "relu":
            x, derivative = torch.relu(z), (z > 0).to(z.dtype)
        else:
            below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
            x, derivative = torch.nn.functional.gelu(z), below + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        derivatives.append(derivative)
    g = weights[-1][0].expand(*x.shape[:-1], -1)
    for weight, derivative in zip(reversed(weights[:-1]), reversed(derivatives), strict=True):
        g = (g * derivative) @ weight
    return g


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """∠(a, b) [*batch] in [0, π]. Exact for almost parallel a and b, where arccos of the cosine is not."""
    a, b = unit_length(a), unit_length(b)
    return 2 * torch.atan2(norm(a - b), norm(a + b)).squeeze(-1)


def turning(
    a: Tensor, theta: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(turns, γ₁, p): whether θᵀa < 0, the angle π·sigmoid(f(a)) [*batch, 1], and ‖a‖ times the direction of rotation.

    The direction is the unit vector of span{a, θ} that is orthogonal to a, on the side of θ. Where a points against θ
    up to rounding it is undefined, and a is not turned.
    """
    r = norm(a).clamp_min(torch.finfo(a.dtype).tiny)
    x, pole = a / r, unit_length(theta)
    across = pole - x * (x @ pole).unsqueeze(-1)
    direction = unit_length(across)
    # Where `across` is short, rounding leaves a part along x: subtract it.
    direction = unit_length(direction - x * (x * direction).sum(-1, keepdim=True))
    turns = ((x @ pole).unsqueeze(-1) < 0) & (norm(across) > 100 * torch.finfo(a.dtype).eps)
    angle = math.pi * torch.sigmoid(network(a, weights, biases, "gelu")).unsqueeze(-1)
    return turns, angle, r * direction


def turned(
    a: Tensor,
    T: float | int | Tensor,
    theta: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
) -> Tensor:
    """a turned by T γ₁(a) towards its reflection in the hyperplane θᵀa = 0, where θᵀa < 0; else a, bit for bit.

    cos(γ) a + sin(γ) p equals [sin(γ) a_H + sin(γ₂ − γ) a]/sin γ₂, but does not divide by sin γ₂, which vanishes as
    γ₂ = ∠(a, a_H) → 0.
    """
    turns, angle, direction = turning(a, theta, weights, biases)
    angle = per_activation(T, a) * angle
    return torch.where(turns, torch.cos(angle) * a + torch.sin(angle) * direction, a)


def turned_in_plane(a: Tensor, T: float | int | Tensor, plane: Tensor, target: float | None, adaptive: bool) -> Tensor:
    """a turned by the angle T in the plane of two orthonormal rows, from the first towards the second. ‖a‖ and the part
    of a orthogonal to the plane stay the same.

    With a `target` (an angle from the first row) a is turned towards it by the shorter way, and stops there; a negative
    T turns it away, at most to the opposite angle. `adaptive`: turn only where a's part along the first row is
    positive.
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
    turns, angle, direction = turning(a, theta, weights, biases)
    return torch.where(turns, angle * direction, torch.zeros_like(a))
