"""Tokens of a batch of texts, and which of them is read: decided once, here. Padding is never read."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from odesteer_tl.shapes import PerRow, Position, Residual, Samples, TokenIds, TokenMask


class Tokenised(NamedTuple):
    """Token ids with the mask of the real ones: pads are False, on whichever side they are."""

    tokens: TokenIds
    mask: TokenMask


def after(mask: TokenMask, starts: PerRow | None) -> TokenMask:
    """The real tokens of each row but for its first `starts` [batch]; None: all of them."""
    return mask if starts is None else mask & (mask.cumsum(1) > starts.unsqueeze(1))


def read_tokens(values: Residual, mask: TokenMask, position: Position) -> tuple[Samples, Int[Tensor, " n"]]:
    """Read one site at `position`, real tokens only: the activations and the row that each came from.

    "last" and an index give one activation per row, "mean" the mean over the row's real tokens, "all" every real
    token. Raises ValueError for a row without real tokens or too short for the index.
    """
    lengths = mask.sum(1)
    rows = torch.arange(len(mask), device=mask.device)
    if (lengths == 0).any():
        raise ValueError(f"Row {int((lengths == 0).nonzero()[0])} holds no real token.")
    if position == "all":
        where = mask.nonzero(as_tuple=True)
        return values[where], where[0]
    if position == "mean":
        real = values.masked_fill(~mask.unsqueeze(-1), 0)  # a pad may hold NaN, which no weight of 0 removes
        return real.sum(1) / lengths.to(values.dtype).unsqueeze(1), rows
    index = -1 if position == "last" else position
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError(f'position must be "last", "mean", "all" or an index, got {position!r}.')
    short = (lengths <= index) if index >= 0 else (lengths < -index)
    if short.any():
        row = int(short.nonzero()[0])
        raise ValueError(f"position={index} lies outside row {row}, which has {int(lengths[row])} real tokens.")
    nth = torch.full_like(lengths, index + 1) if index >= 0 else lengths + index + 1
    column = (mask.cumsum(1) * mask == nth.unsqueeze(1)).int().argmax(1)
    return values[rows, column], rows
