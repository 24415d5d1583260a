"""Attention sinks: tokens that hold no content and have a norm of another size, told by that norm alone.

Many models let one token, mostly the first, take the attention that nothing else wants, and give it a norm some 10 to
200 times that of the others. A mean over a text is then that token.
These functions travel: they use torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOUD = 5.0
"""The largest norm of a text, over the median norm of its tokens, from which on it may be that of a sink."""

QUIET = 3.0
"""Up to that many median norms no token is a sink."""

GAP = 1.5
"""The least factor between the norms of the sinks and those of the other tokens."""


def norms_of(value: Tensor) -> Tensor:
    """‖a‖ of every token of a value [batch, pos, …], float32, on the CPU."""
    return torch.linalg.vector_norm(value.detach().flatten(2), dim=-1, dtype=torch.float32).cpu()


def sinks_among(norms: Tensor, mask: Tensor) -> Tensor:
    """Which real tokens of each text are sinks, by the norms [batch, pos] of that text alone.

    In the order of their norms, the tokens above the widest gap between neighbours (as a factor) of which the upper one
    exceeds QUIET times the median; none where the largest is not above LOUD medians, or the gap is narrower than GAP.
    The median is that of all real tokens, the lower one of two; norms that are not finite belong to no sink.
    """
    known = mask & torch.isfinite(norms)
    sizes = norms.double().masked_fill(~known, float("nan"))
    median = sizes.nanmedian(1, keepdim=True).values.nan_to_num(0.0)
    ordered = sizes.nan_to_num(0.0).sort(1, descending=True).values
    below = torch.nn.functional.pad(ordered[:, 1:], (0, 1))
    below = torch.maximum(below, median)  # a token of norm 0 beside the loud ones makes no gap by itself
    gaps = torch.where(ordered > QUIET * median, ordered / below, 0.0).nan_to_num(0.0, posinf=0.0)
    widest, last = gaps.max(1, keepdim=True)
    found = (ordered[:, :1] > LOUD * median) & (widest >= GAP)
    return known & found & (sizes >= ordered.gather(1, last)) & (median > 0)


def kept_of(read: Tensor, sinks: Tensor) -> Tensor:
    """The tokens to be read but for sinks; of a text that has nothing else to be read, all of them."""
    rest = read & ~sinks
    return torch.where(rest.any(1, keepdim=True), rest, read)
