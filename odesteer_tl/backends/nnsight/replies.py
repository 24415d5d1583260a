"""Checks that the reply of a server has the form that was asked for: types, shapes, finite numbers, prompts, counts.

A reply of the right form from another computation (another model, or no steering) is not noticed.
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
"""Makes the error from a description of what was sent back."""

_SLACK = 1e-3
"""The relative difference allowed between two float32 results of the same computation."""


def width_at(model: Any, blocks: Any, layers: list[int], site: str) -> int | None:
    """The width of a site at these layers; None if it is not known here."""
    if site != "z":
        return width_of(model)
    widths = {_inputs_of(projection_of(blocks_of(model, blocks)[layer])._module) for layer in layers}
    return widths.pop() if len(widths) == 1 else None


def _inputs_of(module: Any) -> int | None:
    if type(module).__name__ == "Conv1D":  # Hugging Face's module in GPT-2, with a weight [in, out]
        return module.weight.shape[0]
    return getattr(module, "in_features", None)


def activations_in(
    value: Any, layers: int, count: int, width: int | None, mask: TokenMask, refused: Refused
) -> tuple[list[Samples], list[Tensor]]:
    """The activations [count, width] and the norms [batch, pos] of each of `layers` layers, float32 and finite.

    The norms at pads, which may be anything, are set to 0. Raises the error of `refused` for any other value.
    """
    if type(value) is not list or len(value) != layers:
        raise refused(f"no list of the activations of {layers} layers")
    samples, norms = [], []
    for pair in value:
        if type(pair) is not tuple or len(pair) != 2 or not all(_floats(activations) for activations in pair):
            raise refused("something else than activations and norms in float32")
        activations, norm = pair
        expected = (count, activations.shape[-1] if width is None and activations.ndim else width)
        if tuple(activations.shape) != expected or norm.shape != mask.shape:
            raise refused(
                f"activations of shape {tuple(activations.shape)} and norms of shape {tuple(norm.shape)}, where "
                f"{expected} and {tuple(mask.shape)} were asked for"
            )
        real_norm = norm.masked_fill(~mask, 0)
        if not bool(torch.isfinite(activations).all()) or not bool(
            (torch.isfinite(real_norm) & (real_norm >= 0)).all()
        ):
            raise refused("numbers that are not finite, or norms below 0")
        samples.append(activations)
        norms.append(real_norm)
    if len({activations.shape[1] for activations in samples}) > 1:
        raise refused("activations of several widths")
    return samples, norms


def check_norms(samples: Samples, norms: Tensor, refused: Refused) -> None:
    """Raise unless the norms [n] are those of the samples [n, width]. This notices rows in another order."""
    if not torch.allclose(samples.norm(dim=1), norms, rtol=_SLACK, atol=1e-6):
        raise refused("activations that do not have the norms sent with them, such as rows in another order")


def check_means(samples: Samples, norms: Tensor, kept: TokenMask, refused: Refused) -> None:
    """Raise if a mean vector is longer than the mean of the norms of its tokens, which is impossible."""
    bound = norms.double().masked_fill(~kept, 0).sum(1) / kept.sum(1)  # float64 does not overflow
    if bool((samples.double().norm(dim=1) > bound * (1 + _SLACK) + 1e-6).any()):
        raise refused("means that are longer than the vectors that they are means of")


def tokens_in(
    value: Any, batch: Tokenised, max_new: int, vocabulary: int | None, pad: int, eos: list[int], refused: Refused
) -> TokenIds:
    """The generated tokens: the prompts as they were sent, then `max_new` columns, or at least 1 if all texts end, of
    ids in the vocabulary, with pads after the end of a text. Raises the error of `refused` for anything else."""
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
    if new.shape[1] > max_new:
        raise refused(f"{new.shape[1]} new tokens, where at most {max_new} were asked for")
    if new.shape[1] < max_new and not bool(_is_in(new, eos).any(1).all()):
        raise refused(f"{new.shape[1]} new tokens, where {max_new} were asked for and not every text has ended")
    after_end = _ended_before(new, eos)
    in_vocabulary = (new >= 0) & (new < vocabulary) if vocabulary is not None else new >= 0
    if not bool((in_vocabulary | (after_end & (new == pad))).all()):
        raise refused("tokens that the vocabulary does not have")
    if bool((after_end & (new != pad)).any()):
        raise refused("tokens after the end of a text")
    return value


def report_in(value: Any, layers: Iterable[int], min_count: int, max_count: int, refused: Refused) -> dict[int, int]:
    """The number of steered tokens per layer: the layers are among `layers`, the counts from `min_count` to
    `max_count`; unless `min_count` is 0, all `layers` are there. Raises the error of `refused` for anything else."""
    if type(value) is not dict or not all(type(number) is int for pair in value.items() for number in pair):
        raise refused("no count of the tokens steered")
    expected_layers = set(layers)
    for layer, count in value.items():
        if layer not in expected_layers or not min_count <= count <= max_count:
            raise refused(f"a count of {count} tokens steered at layer {layer}, where {min_count} to {max_count} at "
                          f"{sorted(expected_layers)} were possible")  # fmt: skip
    if min_count and (missing := expected_layers - set(value)):
        raise refused(f"no count of the tokens steered at {sorted(missing)}, where at least {min_count} were possible")
    return dict(value)


def effects_in(value: Any, shapes: list[tuple[int, int]], refused: Refused) -> tuple[Tensor, Tensor, Tensor]:
    """The costs, gains and lifts of `next_tokens.effects`, in these shapes: float64, finite, no cost below 0. Raises
    the error of `refused` for anything else."""
    if type(value) is not tuple or len(value) != 3 or not all(_floats(part, torch.float64) for part in value):
        raise refused("something else than costs, gains and lifts in float64")
    if [tuple(part.shape) for part in value] != shapes:
        raise refused(f"costs, gains and lifts of shapes {[tuple(part.shape) for part in value]}, where {shapes} were "
                      "asked for")  # fmt: skip
    if not all(bool(torch.isfinite(part).all()) for part in value) or bool((value[0] < 0).any()):
        raise refused("numbers that are not finite, or costs below 0")
    return value


def likelihoods_in(value: Any, count: int, refused: Refused) -> tuple[Tensor, Tensor]:
    """log p of `count` tokens, float32, finite, none above 0, and whether each is the likeliest, bool. Raises the error
    of `refused` for anything else."""
    if type(value) is not tuple or len(value) != 2 or not _floats(value[0]) or type(value[1]) is not Tensor:
        raise refused("something else than log-probabilities in float32 and whether they are the largest")
    if value[1].dtype != torch.bool or any(tuple(part.shape) != (count,) for part in value):
        raise refused(f"log-probabilities of shape {tuple(value[0].shape)}, where {count} were asked for")
    if not bool(torch.isfinite(value[0]).all()) or bool((value[0] > 0).any()):
        raise refused("log-probabilities that are not finite, or above 0")
    return value


def _floats(value: Any, dtype: torch.dtype = torch.float32) -> bool:
    return type(value) is Tensor and value.dtype == dtype


def _ended_before(new: TokenIds, eos: list[int]) -> Bool[Tensor, "batch new"]:
    """The tokens after the first `eos` token of their row."""
    ends = _is_in(new, eos).long()
    return ends.cumsum(1) - ends > 0


def _is_in(new: TokenIds, ids: list[int]) -> Bool[Tensor, "batch new"]:
    return torch.isin(new, torch.tensor(ids, dtype=new.dtype, device="cpu"))
