"""Tokens of a batch of texts, and which of them are read. Only this file decides that. Padding is never read."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odesteer_tl._shapes import PerRow, Position, Residual, Samples, TokenIds, TokenMask
from odesteer_tl.portable.attention_sinks import kept_of, norms_of, sinks_among


class Tokenised(NamedTuple):
    """Token ids, and the mask of the real ones: False at pads, on either side."""

    tokens: TokenIds
    mask: TokenMask


class SiteTokens(NamedTuple):
    """The real tokens of all texts at one site, concatenated: the norm of each, and whether it is an attention sink,
    is `named` by the position, and was `read`."""

    norms: Float[Tensor, " n"]
    sinks: Bool[Tensor, " n"]
    named: Bool[Tensor, " n"]
    read: Bool[Tensor, " n"]


class Reading(NamedTuple):
    """What is read at one position: the activations at each site, the row of each, and the tokens of each site."""

    samples: list[Samples]
    rows: Int[Tensor, " n"]
    tokens: list[SiteTokens]


def random_count(position: Position | None) -> int | None:
    """3 for "random:3"; None for a position that is not drawn at random."""
    found = re.fullmatch(r"random:([1-9][0-9]{0,5})", position) if isinstance(position, str) else None
    return int(found[1]) if found else None


def reads_several(position: Position | None) -> bool:
    """Whether the position names several tokens of a text, each an activation of its own."""
    return position == "all" or random_count(position) is not None


def is_weighted(position: Any) -> bool:
    """Whether the position is the name of `TokenWeights`, whose numbers stand elsewhere."""
    return isinstance(position, str) and re.fullmatch(r"weights(:[\w-]{1,40})?", position) is not None


def check_position(position: Any) -> None:
    """Raise ValueError for what names no token of a text."""
    index = isinstance(position, int) and not isinstance(position, bool)
    if not (index or position in ("last", "mean") or reads_several(position) or is_weighted(position)):
        raise ValueError(
            f'position must be "last", "mean", "all", "random:3", an index or ot.TokenWeights, got {position!r}.'
        )


def check_paired(position: Position | None) -> None:
    """Raise ValueError for a position whose tokens cannot be paired: those drawn from two texts are not alike."""
    if random_count(position) is not None:
        raise ValueError(
            f'Pairs are compared row by row, and position={position!r} draws other tokens from each text: give "last", '
            '"mean" or an index, or leave out paired=.'
        )


def tokens_at(mask: TokenMask, position: Position) -> TokenMask:
    """The tokens of `mask` that `position` names: one per row for "last" and an index, all for "mean", "all" and
    weights.

    "random:n": n of each row, or all where there are fewer; attention sinks among them are left out afterwards. Which
    ones depends on the number of the row's tokens alone, so that neither the batch nor the padding changes them.

    Raises ValueError for a row without tokens, a row too short for the index, and an unknown position.
    """
    lengths = mask.sum(1)
    if (lengths == 0).any():
        raise ValueError(f"Row {int((lengths == 0).nonzero()[0])} holds no real token.")
    check_position(position)
    if position in ("mean", "all") or is_weighted(position):
        return mask
    count = random_count(position)
    if count is not None:
        chosen = torch.zeros_like(mask)
        for row, length in enumerate(lengths.tolist()):
            drawn = torch.randperm(length, generator=torch.Generator().manual_seed(length), device="cpu")[:count]
            chosen[row, mask[row].nonzero()[:, 0][drawn.to(mask.device)]] = True
        return chosen
    index = -1 if position == "last" else int(position)
    short = (lengths <= index) if index >= 0 else (lengths < -index)
    if short.any():
        row = int(short.nonzero()[0])
        raise ValueError(f"position={index} lies outside row {row}, which has {int(lengths[row])} real tokens.")
    nth = torch.full_like(lengths, index + 1) if index >= 0 else lengths + index + 1
    return mask & (mask.cumsum(1) == nth.unsqueeze(1))


def select(values: Residual, mask: TokenMask, position: Position) -> tuple[Samples, Int[Tensor, " n"]]:
    """The activations at the tokens of `mask`, and the row of each; with "mean" the mean over each row's tokens."""
    if position == "mean":
        real = values.masked_fill(~mask.unsqueeze(-1), 0)  # a pad may hold NaN, which no weight of 0 removes
        return real.sum(1) / mask.sum(1, keepdim=True).to(values.dtype), torch.arange(len(mask), device=mask.device)
    rows, columns = mask.nonzero(as_tuple=True)
    return values[rows, columns], rows


def mask_of_lengths(name: str, values: Residual, lengths: Any, explicit: bool) -> TokenMask:
    """The mask of real tokens of a cache whose rows are padded on the right; `name` is that of the side.

    Raises ValueError for lengths that do not fit, and for missing lengths where several rows are read without an
    `explicit` index.
    """
    batch, pos, _ = values.shape
    if lengths is None:
        if batch > 1 and not explicit:
            raise ValueError(
                f"The {name} cache holds {batch} rows: pass {name}_lengths (real tokens per row of a right-padded "
                f"batch), {name}_mask, or an explicit index as position. Shorter rows end in pads otherwise."
            )
        return torch.ones(batch, pos, dtype=torch.bool, device="cpu")
    lengths = torch.as_tensor(lengths, device="cpu")
    if lengths.shape != (batch,) or int(lengths.min()) < 1 or int(lengths.max()) > pos:
        raise ValueError(f"{name}_lengths must hold {batch} numbers from 1 to {pos}, got {lengths.tolist()}.")
    return torch.arange(pos, device="cpu") < lengths.unsqueeze(1)


def without_sinks(
    norms: Sequence[Float[Tensor, "batch pos"]], mask: TokenMask, read: TokenMask, position: Position, keep: bool
) -> tuple[list[TokenMask], list[SiteTokens]]:
    """Per site of a batch, the tokens to read and the `SiteTokens`; attention sinks are told by their norms.

    `mask`: the real tokens; `read`: those of them that may be read. "mean" leaves out the sinks of each site. "all" and
    "random:3" leave out the sinks of any site, as the rows must be the same at all sites. `keep`: no sink is left out.
    """
    named = tokens_at(read, position)
    sinks = [sinks_among(of_site, mask) for of_site in norms]
    masks = [named for _ in sinks]
    if reads_several(position) and not keep:
        masks = [kept_of(named, torch.stack(sinks).any(0)) for _ in sinks]
    elif position == "mean" and not keep:
        masks = [kept_of(named, of_site) for of_site in sinks]
    columns = zip(norms, sinks, [named] * len(masks), masks, strict=True)
    return masks, [SiteTokens(*(values[mask] for values in column)) for column in columns]


def read_sites(values: Sequence[Residual], mask: TokenMask, read: TokenMask, position: Position, keep: bool) -> Reading:
    """The activations at several sites of one batch without sinks, the row of each, and the `SiteTokens` per site."""
    masks, tokens = without_sinks([norms_of(of_site) for of_site in values], mask, read, position, keep)
    selected = [select(of_site, chosen, position) for of_site, chosen in zip(values, masks, strict=True)]
    return Reading([samples for samples, _ in selected], selected[0][1], tokens)


def warn_of_sinks(
    sites: Sequence[SiteTokens],
    names: Sequence[str],
    position: Position,
    shown: Callable[[Tensor, int], str],
    stacklevel: int,
) -> None:
    """Warn of the attention sinks that `position` names, at the site with most of them: number, norms, what to type.

    `names` are those of the sites. `shown` writes some of the tokens of a mask, such as " ('The', ' ')", or nothing.
    """
    counts = [int((site.sinks & site.named).sum()) for site in sites]
    worst = max(range(len(sites)), key=counts.__getitem__)
    if counts[worst] == 0:
        return
    norms, sinks, named, read = sites[worst]
    named_sinks = sinks & named
    sizes = (
        f"of norm {float(norms[named_sinks].median()):,.4g} where the others have {float(norms[~sinks].median()):,.4g}"
    )
    others = sum(count > 0 for count in counts) - 1
    place = names[worst] + (f" (and {others} more of the sites read)" if others else "")
    share = f"{int(named_sinks.sum())} of the {int(named.sum())} tokens that position={position!r} names"
    message = f"At {place} {share} are attention sinks{shown(named_sinks, 3)}, {sizes}: "
    if position == "mean" or is_weighted(position) or reads_several(position):
        n_read = int((named_sinks & read).sum())
        message += "they are left out. " if n_read < counts[worst] else "they are read all the same. "
        message += (
            f"{n_read} of them are read, as their texts have nothing else. " if 0 < n_read < counts[worst] else ""
        )
        message += (
            "keep_sinks=True reads them with the others; skip=1 leaves out the first token of every text, sink or not."
        )
    else:
        message += (
            "a fit on them describes the sink and not the text. Read another position, or put text before the token "
            "that is read; pass keep_sinks=True to read them without this warning."
        )
    warnings.warn(message, stacklevel=stacklevel + 1)


def places_of(asked: TokenMask, copies: PerRow) -> tuple[Tensor, Tensor]:
    """The rows and columns of the tokens of `asked`, of each row as often as `copies` says."""
    rows = torch.arange(len(asked), device="cpu").repeat_interleave(copies)
    numbers, columns = asked[rows].nonzero(as_tuple=True)
    return rows[numbers], columns
