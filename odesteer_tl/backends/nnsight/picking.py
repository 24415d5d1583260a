"""Picking tokens out of what a model computes where it runs, so that a remote server sends back no more than is read.

These functions travel: they use torch and what travels as well.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.backends.nnsight.blocks import blocks_of
from odesteer_tl.backends.nnsight.sites import value_at
from odesteer_tl.sinks import kept_of, norms_of, sinks_among


def picked_at(
    model: Any, blocks: Any, layers: list[int], site: str, rows: Tensor, columns: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """`picked` at a site of each of these layers, which are ascending, in the trace under way."""
    found = blocks_of(model, blocks)
    return [picked(value_at(found[layer], site), rows, columns) for layer in layers]


def averaged_at(
    model: Any, blocks: Any, layers: list[int], site: str, mask: Tensor, read: Tensor, keep_sinks: bool
) -> list[tuple[Tensor, Tensor]]:
    """`averaged` at a site of each of these layers, which are ascending, in the trace under way."""
    found = blocks_of(model, blocks)
    return [averaged(value_at(found[layer], site), mask, read, keep_sinks) for layer in layers]


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
