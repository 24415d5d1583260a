"""Gathers inside a graph what a server sends back: activations of chosen tokens, or what steering did to the logits.

This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.portable.next_tokens import effects, likelihoods, log_probabilities
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


def effects_at(
    model: Any, rows: Tensor, columns: Tensor, following: Tensor, texts: int, words: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`effects` in the running trace, whose batch holds the `texts` unsteered and then their steered copies. Call it in
    an empty invoke, which is given the whole batch."""
    logits = model.output.logits
    p = log_probabilities(logits[:texts], rows, columns)
    return effects(p, logits[texts:], rows, columns, following, texts, words)


def likelihoods_at(model: Any, rows: Tensor, columns: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """`likelihoods` in the running trace."""
    return likelihoods(model.output.logits, rows, columns, following)
