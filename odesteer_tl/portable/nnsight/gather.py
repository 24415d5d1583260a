"""Gathers the activations of chosen tokens inside a graph, so that a server sends back no more than is read.

These functions travel: they use torch and what travels as well.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.portable.nnsight.blocks import blocks_of
from odesteer_tl.portable.nnsight.sites import value_at
from odesteer_tl.portable.token_values import averaged, picked


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
