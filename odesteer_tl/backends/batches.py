"""Batches: texts of like length, read together at some sites; which of their tokens, and what is to be told of them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from odesteer_tl._progress import bar
from odesteer_tl._shapes import PerRow, Position, Samples, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.checks import check_mask_taken
from odesteer_tl.backends.model_info import tokenizer_of
from odesteer_tl.backends.tokenize import check_context, trimmed
from odesteer_tl.data.tokens import SiteTokens, Tokenised, warn_of_sinks
from odesteer_tl.portable.sites import Site

Skip = int | Literal["special"]
"""How many tokens at the head of each text are not read, or "special": none that the tokenizer calls special."""


def readable(model: Any, texts: Tokenised, skip: Skip, starts: PerRow | None = None) -> TokenMask:
    """The real tokens of each text but for its first `starts` and those that are to be skipped after them.

    Raises ValueError for a number below 0, a tokenizer that is missing where it is asked, and a text of which nothing
    is left.
    """
    if skip != "special" and (not isinstance(skip, int) or isinstance(skip, bool) or skip < 0):
        raise ValueError(f'skip is how many tokens of each text to leave out, 0 or more, or "special"; got {skip!r}.')
    first = torch.zeros(len(texts.mask), dtype=torch.long) if starts is None else starts
    read = texts.mask & (texts.mask.cumsum(1) > (first + (0 if skip == "special" else skip)).unsqueeze(1))
    if skip == "special":
        tokenizer = tokenizer_of(model)
        if tokenizer is None:
            raise ValueError('skip="special" asks the tokenizer, and this model has none: pass a number of tokens.')
        read = read & ~torch.isin(texts.tokens, torch.tensor(tokenizer.all_special_ids))
    if skip != 0 and not bool(read.any(1).all()):
        row = int((~read.any(1)).nonzero()[0])
        raise ValueError(f"skip={skip!r} leaves no token of text {row} to be read: skip less, or drop that text.")
    return read


@torch.no_grad()
def read_batches(
    model: Any,
    texts: Tokenised,
    sites: list[Site],
    position: Position,
    batch_size: int,
    progress: bool | None = None,
    remote: bool | str = False,
    blocks: Any = None,
    readable: TokenMask | None = None,
    keep_sinks: bool = False,
) -> tuple[list[Samples], Int[Tensor, " n"], list[SiteTokens]]:
    """At each site the activations of all texts in their order, and the text that each came from; and what was met
    there, each `SiteTokens` in the order of `texts`.

    Texts of like length share a batch, so that little is padded. Only tokens of `readable` (None: all) are read.
    """
    check_context(model, texts)
    backend = backend_of(model)
    readable = texts.mask if readable is None else readable
    order = texts.mask.sum(1).argsort(descending=True, stable=True)
    samples, sources, met, places = [], [], [], []
    said = f"Reading layer{'s' * (len(sites) > 1)} {', '.join(str(site.layer) for site in sites)}"
    number = torch.arange(len(order)).unsqueeze(1).expand(texts.mask.shape)
    for chosen in bar(order.split(batch_size), said=said, progress=progress):
        batch = trimmed(Tokenised(texts.tokens[chosen], texts.mask[chosen]))
        read = readable[chosen][:, -batch.mask.shape[1] :]
        check_mask_taken(model, batch.mask)
        values, rows, seen = backend.activations(model, batch, sites, position, read, keep_sinks, remote, blocks)
        samples.append(values)
        sources.append(chosen[rows])
        met.append(seen)
        places.append(number[chosen][texts.mask[chosen]])
    source = torch.cat(sources)
    back, there = source.argsort(stable=True), torch.cat(places).argsort(stable=True)
    told = [
        SiteTokens(*(torch.cat(part)[there] for part in zip(*parts, strict=True))) for parts in zip(*met, strict=True)
    ]
    return [torch.cat(parts)[back] for parts in zip(*samples, strict=True)], source[back], told


def tell_of_sinks(
    model: Any, sites: Sequence[Site], position: Position, sides: Sequence[tuple[Tokenised, list[SiteTokens]]]
) -> None:
    """Warn, once for all sides and sites, of attention sinks among the tokens that `position` names."""
    met = [
        SiteTokens(*(torch.cat(part) for part in zip(*parts, strict=True)))
        for parts in zip(*(m for _, m in sides), strict=True)
    ]
    ids = torch.cat([texts.tokens[texts.mask] for texts, _ in sides])
    first = torch.cat([(texts.mask.cumsum(1) == 1)[texts.mask] for texts, _ in sides])

    def shown(hit: Tensor, most: int) -> str:
        tokenizer, firsts = tokenizer_of(model), int((hit & first).sum())
        said = [f"{firsts} the first token of their text"] if firsts else []
        said += [f"{int(hit.sum()) - firsts} later ones"] if int(hit.sum()) > firsts else []
        words = [] if tokenizer is None else [repr(tokenizer.decode([i])) for i in ids[hit].unique().tolist()[:most]]
        return f" ({', '.join(said)}{': ' * bool(words)}{', '.join(words)})"

    warn_of_sinks(met, [site.hook_name for site in sites], position, shown, stacklevel=4)
