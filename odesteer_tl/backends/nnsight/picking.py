"""Picking tokens out of a block's output where the model runs, so that a remote server sends back no more than is read.

These functions travel: they use torch and nothing else.
"""

from __future__ import annotations

from torch import Tensor


def picked(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The activations [n, d_model] at (rows, columns) of a value [batch, pos, d_model], float32, on the CPU."""
    return value[rows.to(value.device), columns.to(value.device)].detach().float().cpu()


def averaged(value: Tensor, mask: Tensor) -> Tensor:
    """The mean activation [batch, d_model] of each row's real tokens, float32, on the CPU. A pad may hold NaN."""
    mask = mask.to(value.device)
    real = value.detach().float().masked_fill(~mask.unsqueeze(-1), 0)
    return (real.sum(1) / mask.sum(1, keepdim=True)).cpu()
