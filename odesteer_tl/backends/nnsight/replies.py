"""Replies: what a server sent back is compared with what was asked, in all that can be seen from here.

A server that computes something else, of the right form, is not noticed: another model, or no steering.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from odesteer_tl._shapes import Samples, TokenIds, TokenMask
from odesteer_tl.backends.model_info import width_of
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.portable.nnsight.blocks import blocks_of
from odesteer_tl.portable.nnsight.sites import projection_of

Refused = Callable[[str], RuntimeError]
"""Makes the error, of what was sent back."""

_SLACK = 1e-3
"""How far apart two numbers may be, relative to their size, that were computed in float32 from the same ones."""


def width_at(model: Any, blocks: Any, layers: list[int], site: str) -> int | None:
    """How many numbers a token has at a site of these layers; None where it cannot be told from here."""
    if site != "z":
        return width_of(model)
    found = {_inputs_of(projection_of(blocks_of(model, blocks)[layer])._module) for layer in layers}
    return found.pop() if len(found) == 1 else None


def _inputs_of(module: Any) -> int | None:
    if type(module).__name__ == "Conv1D":  # Hugging Face's, of GPT-2: a weight [in, out]
        return module.weight.shape[0]
    return getattr(module, "in_features", None)


def activations_in(
    value: Any, layers: int, count: int, width: int | None, mask: TokenMask, refused: Refused
) -> tuple[list[Samples], list[Tensor]]:
    """The activations [count, width] and the norms [batch, pos] of so many layers, float32 and finite.

    At pads, whose norms may be anything, the norms are 0.
    """
    if type(value) is not list or len(value) != layers:
        raise refused(f"no list of what {layers} layers hold")
    samples, norms = [], []
    for pair in value:
        if type(pair) is not tuple or len(pair) != 2 or not all(_floats(each) for each in pair):
            raise refused("something else than activations and norms, float32")
        each, norm = pair
        asked = (count, each.shape[-1] if width is None and each.ndim else width)
        if tuple(each.shape) != asked or norm.shape != mask.shape:
            raise refused(
                f"activations of shape {tuple(each.shape)} and norms of shape {tuple(norm.shape)}, where {asked} and "
                f"{tuple(mask.shape)} were asked for"
            )
        known = norm.masked_fill(~mask, 0)
        if not bool(torch.isfinite(each).all()) or not bool((torch.isfinite(known) & (known >= 0)).all()):
            raise refused("numbers that are not finite, or norms below 0")
        samples.append(each)
        norms.append(known)
    if len({each.shape[1] for each in samples}) > 1:
        raise refused("activations of several widths")
    return samples, norms


def check_norms(samples: Samples, norms: Tensor, refused: Refused) -> None:
    """Raise unless the norms, one for each sample, are those of the samples: rows in another order are noticed."""
    if not torch.allclose(samples.norm(dim=1), norms, rtol=_SLACK, atol=1e-6):
        raise refused("activations of other lengths than the norms beside them, such as rows in another order")


def check_means(samples: Samples, norms: Tensor, kept: TokenMask, refused: Refused) -> None:
    """Raise where a mean is longer than the mean of the norms that it is made of: no such vectors are there."""
    most = norms.double().masked_fill(~kept, 0).sum(1) / kept.sum(1)  # in double: none of it overflows
    if bool((samples.double().norm(dim=1) > most * (1 + _SLACK) + 1e-6).any()):
        raise refused("means that are longer than what they are the means of")


def tokens_in(
    value: Any, batch: Tokenised, most: int, vocabulary: int | None, pad: int, eos: list[int], refused: Refused
) -> TokenIds:
    """The prompts as they were sent, and `most` new columns, or at least 1 where all texts end: ids of the vocabulary,
    after a text's end pads."""
    if type(value) is not Tensor or value.dtype not in (torch.int64, batch.tokens.dtype) or value.ndim != 2:
        raise refused("no text")
    rows, width = batch.tokens.shape
    if len(value) != rows:
        raise refused(f"{len(value)} texts for {rows} prompts")
    if not value[:, :width].equal(batch.tokens.to(value)):
        raise refused("other prompts than were sent")
    new = value[:, width:]
    if new.shape[1] < 1:
        raise refused("no text")
    if new.shape[1] > most:
        raise refused(f"{new.shape[1]} new tokens, where at most {most} were asked for")
    if new.shape[1] < most and not bool(_among(new, eos).any(1).all()):
        raise refused(f"{new.shape[1]} new tokens, where {most} were asked for and not every text has ended")
    ends = _ended_before(new, eos)
    inside = (new >= 0) & (new < vocabulary) if vocabulary is not None else new >= 0
    if not bool((inside | (ends & (new == pad))).all()):
        raise refused("tokens that the vocabulary does not have")
    if bool((ends & (new != pad)).any()):
        raise refused("tokens after the end of a text")
    return value


def report_in(value: Any, layers: Iterable[int], least: int, most: int, refused: Refused) -> dict[int, int]:
    """How many tokens were steered at the layers asked: `least` to `most` at each; none is not said."""
    if type(value) is not dict or not all(type(each) is int for pair in value.items() for each in pair):
        raise refused("no count of the tokens steered")
    asked = set(layers)
    for layer, count in value.items():
        if layer not in asked or not least <= count <= most:
            raise refused(f"a count of {count} tokens steered at layer {layer}, where {least} to {most} at "
                          f"{sorted(asked)} were possible")  # fmt: skip
    if least and (missing := asked - set(value)):
        raise refused(f"no count of the tokens steered at {sorted(missing)}, where at least {least} were possible")
    return dict(value)


def _floats(value: Any) -> bool:
    return type(value) is Tensor and value.dtype == torch.float32


def _ended_before(new: TokenIds, eos: list[int]) -> Bool[Tensor, "batch new"]:
    """The tokens that come after the first one of `eos` in their row."""
    ends = _among(new, eos).long()
    return ends.cumsum(1) - ends > 0


def _among(new: TokenIds, ids: list[int]) -> Bool[Tensor, "batch new"]:
    return torch.isin(new, torch.tensor(ids, dtype=new.dtype))
