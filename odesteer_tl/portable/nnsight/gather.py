"""Gathers the activations of chosen tokens inside a graph, so that a server sends back only these.

This file is sent to servers, so it uses torch alone.
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
    """`picked` at a site of each of `layers` (ascending), in the running trace."""
    block_list = blocks_of(model, blocks)
    return [picked(value_at(block_list[layer], site), rows, columns) for layer in layers]


def averaged_at(
    model: Any, blocks: Any, layers: list[int], site: str, mask: Tensor, read: Tensor, keep_sinks: bool
) -> list[tuple[Tensor, Tensor]]:
    """`averaged` at a site of each of `layers` (ascending), in the running trace."""
    block_list = blocks_of(model, blocks)
    return [averaged(value_at(block_list[layer], site), mask, read, keep_sinks) for layer in layers]
