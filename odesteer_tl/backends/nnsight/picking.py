"""Picking tokens out of what a model computes where it runs, so that a remote server sends back no more than is read.

These functions travel: they use torch and what travels as well.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.backends.nnsight.blocks import blocks_of
from odesteer_tl.backends.nnsight.sites import value_at


def picked_at(model: Any, blocks: Any, layers: list[int], site: str, rows: Tensor, columns: Tensor) -> list[Tensor]:
    """`picked` at a site of each of these layers, which are ascending, in the trace under way."""
    found = blocks_of(model, blocks)
    return [picked(value_at(found[layer], site), rows, columns) for layer in layers]


def averaged_at(model: Any, blocks: Any, layers: list[int], site: str, mask: Tensor) -> list[Tensor]:
    """`averaged` at a site of each of these layers, which are ascending, in the trace under way."""
    found = blocks_of(model, blocks)
    return [averaged(value_at(found[layer], site), mask) for layer in layers]


def picked(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The activations [n, d_model] at (rows, columns) of a value [batch, pos, d_model], float32, on the CPU."""
    return value[rows.to(value.device), columns.to(value.device)].detach().float().cpu()


def averaged(value: Tensor, mask: Tensor) -> Tensor:
    """The mean activation [batch, d_model] of each row's real tokens, float32, on the CPU. A pad may hold NaN."""
    mask = mask.to(value.device)
    real = value.detach().float().masked_fill(~mask.unsqueeze(-1), 0)
    return (real.sum(1) / mask.sum(1, keepdim=True)).cpu()
