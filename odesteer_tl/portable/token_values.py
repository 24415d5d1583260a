"""Picks the activations of chosen tokens where the model computes them, so that no more is moved than is read.

This file travels: it uses torch and what travels as well.
"""

from __future__ import annotations

from torch import Tensor

from odesteer_tl.portable.attention_sinks import kept_of, norms_of, sinks_among


def picked(value: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The activations [n, d_model] at (rows, columns) of a value [batch, pos, d_model], and the norms [batch, pos] of
    all, float32, on the CPU."""
    return value[rows.to(value.device), columns.to(value.device)].detach().float().cpu(), norms_of(value)


def averaged(value: Tensor, mask: Tensor, read: Tensor, keep_sinks: bool) -> tuple[Tensor, Tensor]:
    """The mean activation [batch, d_model] of each row's tokens in `read`, and the norms [batch, pos] of all, float32,
    on the CPU. Attention sinks among the real tokens, `mask`, are left out unless they are to be kept. A pad may hold
    NaN."""
    norms = norms_of(value)
    kept = read if keep_sinks else kept_of(read, sinks_among(norms, mask))
    kept = kept.to(value.device)
    real = value.detach().float().masked_fill(~kept.unsqueeze(-1), 0)
    return (real.sum(1) / kept.sum(1, keepdim=True)).cpu(), norms
