"""A flow from activations to correction vectors, as plain functions over tensors.

Queries x₀ and corrections x₁ have different scales, so the flow runs on z₀ = (x₀ − m₀)/s₀ and z₁ = (x₁ − m₁)/s₁.
ż = u(z, t) carries z₀ at t = 0 to z₁ at t = 1; u is a linear U-Net. As in `integrate`, nothing is imported that a
server does not have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odesteer_tl.portable.integrate import midpoint, path, per_activation


def time_features(t: Tensor, size: int) -> Tensor:
    """(sin ω₁t, …, cos ω₁t, …) [*batch, size] of times t [*batch], ω from 1 to 100 in equal ratios.

    The frequencies of the source are not published. The solver evaluates at times 1/30 apart. A wave above 100 would
    turn by more than half a circle between two evaluations, and the solver could not resolve it.
    """
    powers = torch.linspace(0, math.log(100), size // 2, device=t.device, dtype=t.dtype)
    angles = t.unsqueeze(-1) * torch.exp(powers)
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


def unet(z: Tensor, t: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
    """u(z, t) [*batch, d_model] for z [*batch, d_model] and t [*batch].

    `layers` is a flat tuple, each weight [out, in], with s = silu and e(t) the time features:
    first (W, b), τ = s(W e(t) + b); per level down (D, d, E, C, c), x ← R(Dx + d);
    per level up but the last (U, u, E, C, c), x ← R(Ux + u + x of that width on the way down);
    last (U, u, G, g), u = Ux + u + (Gτ + g) z. The residual block is R(y) = y + C s(y + Eτ) + c.
    The skip connection at full width is a gate, one number per coordinate and time.
    """
    tau = torch.nn.functional.silu(time_features(t, layers[0].shape[1]) @ layers[0].T + layers[1])
    depth = (len(layers) - 1) // 10  # there are 2 + 5 depth + 5 (depth − 1) + 4 tensors
    blocks = [layers[2 + 5 * k : 7 + 5 * k] for k in range(2 * depth - 1)]
    x, skips = z, []
    for down in blocks[:depth]:
        x = residual(x @ down[0].T + down[1], tau, down[2:])
        skips.append(x)
    for up, skip in zip(blocks[depth:], reversed(skips[:-1]), strict=True):
        x = residual(x @ up[0].T + up[1] + skip, tau, up[2:])
    weight, bias, gate, opening = layers[-4:]
    return x @ weight.T + bias + (tau @ gate.T + opening) * z


def residual(y: Tensor, tau: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
    """y + C s(y + Eτ) + c [*batch, width], `layers` being (E, C, c)."""
    times, weight, bias = layers
    return y + torch.nn.functional.silu(y + tau @ times.T) @ weight.T + bias


def velocity(now: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
    """(u(z, t), 1) at now = (z, t) [*batch, d_model + 1]: the field of the flow, with t as the last coordinate."""
    z, t = now[..., :-1], now[..., -1]
    return torch.cat([unet(z, t, layers), torch.ones_like(now[..., -1:])], dim=-1)


def sampled(
    x: Tensor,
    layers: tuple[Tensor, ...],
    source: Tensor,
    scale: float,
    target: Tensor,
    unit: float,
    steps: int,
) -> Tensor:
    """x̂₁ [*batch, d_model] of queries x: from z₀ to z(1) by the midpoint rule, then in the units of corrections.

    `source` m₀ and `scale` s₀ belong to queries, `target` m₁ and `unit` s₁ to corrections.
    """

    def field(now):
        return velocity(now, layers)

    z = (x - source) / scale
    now = torch.cat([z, torch.zeros_like(z[..., :1])], dim=-1)
    for point in path(field, now, 1.0, midpoint, steps):
        now = point
    return target + unit * now[..., :-1]


def correction(
    x: Tensor,
    layers: tuple[Tensor, ...],
    source: Tensor,
    scale: float,
    target: Tensor,
    unit: float,
    steps: int,
    basis: Tensor,
) -> Tensor:
    """P x̂₁ [*batch, d_model] of queries x: the part of `sampled` in the span of `basis` [d_model, k], orthonormal."""
    return sampled(x, layers, source, scale, target, unit, steps) @ basis @ basis.T


def corrected(
    a: Tensor,
    T: float | int | Tensor,
    layers: tuple[Tensor, ...],
    source: Tensor,
    scale: float,
    target: Tensor,
    unit: float,
    steps: int,
    basis: Tensor,
) -> Tensor:
    """a + T P x̂₁(a): every activation is its own query."""
    return a + per_activation(T, a) * correction(a, layers, source, scale, target, unit, steps, basis)
