"""Batches: reads texts of similar length together at some sites, and chooses which of their tokens are read."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from odesteer_tl._progress import bar
from odesteer_tl._shapes import PerRow, Position, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.checks import check_mask_taken
from odesteer_tl.backends.model_info import tokenizer_of
from odesteer_tl.backends.tokenize import check_context, longest_first, trimmed
from odesteer_tl.data.tokens import Reading, SiteTokens, Tokenised, warn_of_sinks
from odesteer_tl.portable.sites import Site

Skip = int | Literal["special"]
"""The number of tokens at the start of each text that are not read, or "special": skip the tokenizer's special
tokens."""


def readable(model: Any, texts: Tokenised, skip: Skip, starts: PerRow | None = None) -> TokenMask:
    """The real tokens of each text without its first `starts` and without the tokens that `skip` names after them.

    Raises ValueError for a negative number, for "special" without a tokenizer, and for a text without remaining tokens.
    """
    if skip != "special" and (not isinstance(skip, int) or isinstance(skip, bool) or skip < 0):
        raise ValueError(f'skip is the number of tokens to leave out per text, 0 or more, or "special"; got {skip!r}.')
    first = torch.zeros(len(texts.mask), dtype=torch.long, device="cpu") if starts is None else starts
    read = texts.mask & (texts.mask.cumsum(1) > (first + (0 if skip == "special" else skip)).unsqueeze(1))
    if skip == "special":
        tokenizer = tokenizer_of(model)
        if tokenizer is None:
            raise ValueError('skip="special" needs a tokenizer, and this model has none: pass a number of tokens.')
        read = read & ~torch.isin(texts.tokens, torch.tensor(tokenizer.all_special_ids, device="cpu"))
    if skip != 0 and not bool(read.any(1).all()):
        row = int((~read.any(1)).nonzero()[0])
        raise ValueError(f"skip={skip!r} leaves no token of text {row} to read: skip less, or drop that text.")
    return read


def of_rows(value: Any, rows: Tensor, count: int) -> Any:
    """The part that belongs to `rows` of a tensor of one value for each of `count` prompts; other values unchanged.

    Raises ValueError for a tensor of another number of values.
    """
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) != count:
        raise ValueError(f"A tensor needs one value per prompt: {count} prompts, got {len(value)} values.")
    return value[rows]


@torch.no_grad()
def read_batches(
    model: Any,
    texts: Tokenised,
    sites: list[Site],
    positions: Sequence[Position],
    batch_size: int,
    progress: bool | None = None,
    remote: bool | str = False,
    blocks: Any = None,
    readable: TokenMask | None = None,
    keep_sinks: bool = False,
) -> list[Reading]:
    """For each position the activations of all texts at each site, in the order of `texts`; the text of each
    activation; and the norms and sinks at each site (`SiteTokens`), in the order of `texts`.

    Texts of similar length share a batch, so that there are few pads. Only tokens of `readable` (None: all) are read.
    """
    check_context(model, texts)
    backend = backend_of(model)
    if not remote:
        backend.load_weights(model)
    readable = texts.mask if readable is None else readable
    order = longest_first(texts.mask)
    read_parts: list[list[Reading]] = [[] for _ in positions]
    texts_of_tokens = []
    message = f"Reading layer{'s' * (len(sites) > 1)} {', '.join(str(site.layer) for site in sites)}"
    text_index = torch.arange(len(order), device="cpu").unsqueeze(1).expand(texts.mask.shape)
    for chosen in bar(order.split(batch_size), label=message, progress=progress):
        batch = trimmed(Tokenised(texts.tokens[chosen], texts.mask[chosen]))
        read = readable[chosen][:, -batch.mask.shape[1] :]
        check_mask_taken(model, batch.mask)
        readings = backend.activations(model, batch, sites, positions, read, keep_sinks, remote, blocks)
        for parts, (values, rows, batch_sinks) in zip(read_parts, readings, strict=True):
            parts.append(Reading(values, chosen[rows], batch_sinks))
        texts_of_tokens.append(text_index[chosen][texts.mask[chosen]])
    order_of_tokens = torch.cat(texts_of_tokens).argsort(stable=True)
    return [_in_order(parts, order_of_tokens) for parts in read_parts]


def _in_order(parts: list[Reading], order_of_tokens: Int[Tensor, " tokens"]) -> Reading:
    """The readings of all batches as one, in the order of the texts."""
    samples, sources, sinks = zip(*parts, strict=True)
    source = torch.cat(sources)
    order_of_samples = source.argsort(stable=True)
    merged = [
        SiteTokens(*(torch.cat(part)[order_of_tokens] for part in zip(*of_site, strict=True)))
        for of_site in zip(*sinks, strict=True)
    ]
    of_sites = [torch.cat(values)[order_of_samples] for values in zip(*samples, strict=True)]
    return Reading(of_sites, source[order_of_samples], merged)


def both_sides(sides: Sequence[list[SiteTokens]]) -> list[SiteTokens]:
    """The tokens of all sides together, at each site."""
    return [SiteTokens(*(torch.cat(part) for part in zip(*parts, strict=True))) for parts in zip(*sides, strict=True)]


def report_sinks(
    model: Any, sites: Sequence[Site], position: Position, sides: Sequence[tuple[Tokenised, list[SiteTokens]]]
) -> None:
    """Warn once, for all sides and sites, of attention sinks among the tokens that `position` names."""
    met = both_sides([tokens for _, tokens in sides])
    ids = torch.cat([texts.tokens[texts.mask] for texts, _ in sides])
    first = torch.cat([(texts.mask.cumsum(1) == 1)[texts.mask] for texts, _ in sides])

    def describe(is_sink: Tensor, max_words: int) -> str:
        tokenizer, n_first = tokenizer_of(model), int((is_sink & first).sum())
        parts = [f"{n_first} the first token of their text"] if n_first else []
        parts += [f"{int(is_sink.sum()) - n_first} later ones"] if int(is_sink.sum()) > n_first else []
        words = (
            []
            if tokenizer is None
            else [repr(tokenizer.decode([i])) for i in ids[is_sink].unique().tolist()[:max_words]]
        )
        return f" ({', '.join(parts)}{': ' * bool(words)}{', '.join(words)})"

    warn_of_sinks(met, [site.hook_name for site in sites], position, describe, stacklevel=4)
