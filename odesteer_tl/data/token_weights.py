"""`TokenWeights`: a reading position of the user's own, a weighted mean over the tokens of each text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl._shapes import Position, Samples, TokenMask
from odesteer_tl.data.tokens import Reading, SiteTokens, is_weighted
from odesteer_tl.portable.attention_sinks import kept_of

Side = Sequence[Float[Tensor, " _"] | Sequence[float]]
"""The weights of the real tokens of each text of a side."""


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """A reading position: a text is read as the mean of its tokens, weighted by numbers that you give.

        weights = ot.TokenWeights([attention(text) for text in good], [attention(text) for text in bad], "attention")
        acts = ot.collect(model, good, bad, 14, position=weights)        # acts.position == "weights:attention"

    Formula: a = Σᵢ wᵢ aᵢ / Σᵢ wᵢ over the real tokens i of a text that are read. `desired`, `undesired`: for each text
    one number of 0 or more per real token, BOS, template and query included, as `acts.tokens` of a `collect` shows
    them. Attention sinks count 0, as in "mean", and a warning says so; `keep_sinks=True` counts them as given. `name`:
    letters, digits, "-" and "_", shown in tables and kept with the fit; the weights themselves are not kept.

    Raises ValueError for weights that are negative, not finite or no numbers, for another name, and, where texts are
    read, for another number of texts or tokens and for a text whose tokens all have weight 0.
    """

    desired: Side
    undesired: Side
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w-]{0,40}", self.name):
            raise ValueError(f'The name of weights is at most 40 letters, digits, "-" and "_"; got {self.name!r}.')
        for name in ("desired", "undesired"):
            object.__setattr__(self, name, [_checked(of, name, row) for row, of in enumerate(getattr(self, name))])

    def __str__(self) -> str:
        """As activations and fits name it: "weights", or "weights:name"."""
        return f"weights:{self.name}" if self.name else "weights"

    def __repr__(self) -> str:
        return f"TokenWeights({self}, {len(self.desired)} + {len(self.undesired)} texts)"

    def mean(self, read: Reading, side: str, mask: TokenMask, readable: TokenMask, keep_sinks: bool) -> Reading:
        """The weighted means of a side whose `readable` tokens were all read; `mask`: its real tokens."""
        given = getattr(self, side)
        if len(given) != len(mask):
            raise ValueError(f"{self!r} has weights for {len(given)} {side} texts, but {len(mask)} are read.")
        for row, (own, count) in enumerate(zip(given, mask.sum(1).tolist(), strict=True)):
            if len(own) != count:
                raise ValueError(
                    f"Text {row} of the {side} ones has {count} tokens, but {len(own)} weights. Its tokens, BOS and "
                    "template included, stand in the .tokens of what ot.collect returns."
                )
        weights = torch.zeros(mask.shape, dtype=torch.float64, device="cpu").masked_scatter(mask, torch.cat(given))
        named = readable & (weights > 0)
        if not bool(named.any(1).all()):
            row = int((~named.any(1)).nonzero()[0])
            raise ValueError(f"All tokens that are read of text {row} of the {side} ones have weight 0.")
        samples, met = [], []
        for values, tokens in zip(read.samples, read.tokens, strict=True):
            sinks = torch.zeros_like(mask).masked_scatter(mask, tokens.sinks)
            kept = named if keep_sinks else kept_of(named, sinks)
            samples.append(_means(values, read.rows, (weights * kept)[readable], len(mask)))
            met.append(SiteTokens(tokens.norms, tokens.sinks, named[mask], kept[mask]))
        return Reading(samples, torch.arange(len(mask), device="cpu"), met)


def by_name(position: Position | TokenWeights) -> Position:
    """The position as texts, fits and tables name it."""
    return str(position) if isinstance(position, TokenWeights) else position


def given_weights(position: Any) -> TokenWeights | None:
    """The weights, None for a position by name. Raises ValueError for the name of weights without their numbers."""
    if isinstance(position, TokenWeights):
        return position
    if is_weighted(position):
        raise ValueError(f"position={position!r} names weights: give the ot.TokenWeights themselves.")
    return None


def _means(
    values: Samples, rows: Int[Tensor, " n"], weights: Float[Tensor, " n"], count: int
) -> Float[Tensor, "texts d_model"]:
    """Weights stand in the order of the texts, as the values do; a value of weight 0 may be of any size."""
    own = weights.to(torch.float64)
    used = values.double().masked_fill((own == 0).unsqueeze(1), 0) * own.unsqueeze(1)
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64, device="cpu").index_add_(0, rows, used)
    totals = torch.zeros(count, dtype=torch.float64, device="cpu").index_add_(0, rows, own)
    return (sums / totals.unsqueeze(1)).to(values.dtype)


def _checked(weights: Any, side: str, row: int) -> Float[Tensor, " pos"]:
    try:
        own = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"The weights of text {row} of the {side} ones are no numbers: {error}") from None
    if own.ndim != 1 or not bool(torch.isfinite(own).all()) or bool((own < 0).any()):
        raise ValueError(
            f"The weights of text {row} of the {side} ones must be one number of 0 or more per token; got a tensor "
            f"{tuple(own.shape)}" + (f" from {float(own.min()):g} to {float(own.max()):g}." if own.numel() else ".")
        )
    return own
