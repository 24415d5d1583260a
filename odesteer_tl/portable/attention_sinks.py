"""Attention sinks: tokens without content and with a very large norm, recognised by that norm alone.

In many models one token, mostly the first, takes the attention that no other token needs, and its norm is some 10 to
200 times that of the others. A mean over a text is then almost this token alone.
This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOUD = 5.0
"""A text has sinks only if its largest norm is above this multiple of the median norm."""

QUIET = 3.0
"""A token is a sink only if its norm is above this multiple of the median norm."""

GAP = 1.5
"""The smallest sink norm is at least this multiple of the largest other norm."""


def norms_of(value: Tensor) -> Tensor:
    """‖a‖ of every token of a value [batch, pos, …], float32, on the CPU."""
    return torch.linalg.vector_norm(value.detach().flatten(2), dim=-1, dtype=torch.float32).cpu()


def sinks_among(norms: Tensor, mask: Tensor) -> Tensor:
    """Which real tokens of each text are sinks [batch, pos], by the norms [batch, pos] of that text alone.

    Sort the norms; among neighbours whose upper norm exceeds QUIET medians, take the widest gap (as a ratio). The
    tokens above this gap are the sinks. There are none if the largest norm is at most LOUD medians, or the gap is below
    GAP. The median is over all real tokens, the lower of the two middle ones; a token of non-finite norm is no sink.
    """
    known = mask & torch.isfinite(norms)
    sizes = norms.double().masked_fill(~known, float("nan"))
    median = sizes.nanmedian(1, keepdim=True).values.nan_to_num(0.0)
    ordered = sizes.nan_to_num(0.0).sort(1, descending=True).values
    below = torch.nn.functional.pad(ordered[:, 1:], (0, 1))
    below = torch.maximum(below, median)  # so that a token of norm 0 next to a large one makes no gap by itself
    gaps = torch.where(ordered > QUIET * median, ordered / below, 0.0).nan_to_num(0.0, posinf=0.0)
    widest, last = gaps.max(1, keepdim=True)
    has_sinks = (ordered[:, :1] > LOUD * median) & (widest >= GAP)
    return known & has_sinks & (sizes >= ordered.gather(1, last)) & (median > 0)


def kept_of(read: Tensor, sinks: Tensor) -> Tensor:
    """The tokens to read without the sinks; if a text has only sinks to read, all of them."""
    rest = read & ~sinks
    return torch.where(rest.any(1, keepdim=True), rest, read)
