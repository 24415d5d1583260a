"""Picks the activations of chosen tokens on the model's device, so that only these are copied.

This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

from torch import Tensor

from odesteer_tl.portable.attention_sinks import kept_of, norms_of, sinks_among


def picked(value: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The activations [n, d_model] at (rows, columns) of a value [batch, pos, d_model], and the norms [batch, pos] of
    all tokens; float32, on the CPU."""
    return value[rows.to(value.device), columns.to(value.device)].detach().float().cpu(), norms_of(value)


def averaged(value: Tensor, mask: Tensor, read: Tensor, keep_sinks: bool) -> tuple[Tensor, Tensor]:
    """The mean activation [batch, d_model] of each row's tokens in `read`, and the norms [batch, pos] of all tokens;
    float32, on the CPU. Attention sinks among the real tokens (`mask`) are left out unless `keep_sinks`. Pads may be
    NaN."""
    norms = norms_of(value)
    kept = read if keep_sinks else kept_of(read, sinks_among(norms, mask))
    kept = kept.to(value.device)
    values = value.detach().float().masked_fill(~kept.unsqueeze(-1), 0)
    return (values.sum(1) / kept.sum(1, keepdim=True)).cpu(), norms
