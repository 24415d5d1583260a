"""Tokens of a batch of texts, and which of them is read: decided once, here. Padding is never read."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odesteer_tl._shapes import Position, Residual, Samples, TokenIds, TokenMask
from odesteer_tl.portable.attention_sinks import kept_of, norms_of, sinks_among


class Tokenised(NamedTuple):
    """Token ids with the mask of the real ones: pads are False, on whichever side they are."""

    tokens: TokenIds
    mask: TokenMask


class Met(NamedTuple):
    """What was met at one site, the real tokens of all texts in a row: their norms, which are attention sinks, which
    `position` names, and which were read."""

    norms: Float[Tensor, " n"]
    sinks: Bool[Tensor, " n"]
    named: Bool[Tensor, " n"]
    read: Bool[Tensor, " n"]


def named(mask: TokenMask, position: Position) -> TokenMask:
    """The tokens of `mask` that `position` names: "last" and an index one of each row, "mean" and "all" all of them.

    Raises ValueError for a row without tokens or too short for the index, and for another position.
    """
    lengths = mask.sum(1)
    if (lengths == 0).any():
        raise ValueError(f"Row {int((lengths == 0).nonzero()[0])} holds no real token.")
    if position in ("mean", "all"):
        return mask
    index = -1 if position == "last" else position
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError(f'position must be "last", "mean", "all" or an index, got {position!r}.')
    short = (lengths <= index) if index >= 0 else (lengths < -index)
    if short.any():
        row = int(short.nonzero()[0])
        raise ValueError(f"position={index} lies outside row {row}, which has {int(lengths[row])} real tokens.")
    nth = torch.full_like(lengths, index + 1) if index >= 0 else lengths + index + 1
    return mask & (mask.cumsum(1) == nth.unsqueeze(1))


def taken(values: Residual, where: TokenMask, position: Position) -> tuple[Samples, Int[Tensor, " n"]]:
    """The activations of the tokens of `where`, or with "mean" the mean of each row's, and the row of each."""
    if position == "mean":
        real = values.masked_fill(~where.unsqueeze(-1), 0)  # a pad may hold NaN, which no weight of 0 removes
        return real.sum(1) / where.sum(1, keepdim=True).to(values.dtype), torch.arange(len(where), device=where.device)
    found = where.nonzero(as_tuple=True)
    return values[found], found[0]


def mask_of_lengths(name: str, values: Residual, lengths: Any, explicit: bool) -> TokenMask:
    """The real tokens of a cache whose rows are padded on the right; `name` is the side's.

    Raises ValueError for lengths that do not fit, or that are missing where more than one row is not read at an
    `explicit` index.
    """
    batch, pos, _ = values.shape
    if lengths is None:
        if batch > 1 and not explicit:
            raise ValueError(
                f"The {name} cache holds {batch} rows: pass {name}_lengths (real tokens per row of a right-padded "
                f"batch), {name}_mask, or an explicit index as position. Shorter rows end in pads otherwise."
            )
        return torch.ones(batch, pos, dtype=torch.bool)
    lengths = torch.as_tensor(lengths)
    if lengths.shape != (batch,) or int(lengths.min()) < 1 or int(lengths.max()) > pos:
        raise ValueError(f"{name}_lengths must hold {batch} numbers from 1 to {pos}, got {lengths.tolist()}.")
    return torch.arange(pos) < lengths.unsqueeze(1)


def without_sinks(
    norms: Sequence[Float[Tensor, "batch pos"]], mask: TokenMask, read: TokenMask, position: Position, keep: bool
) -> tuple[list[TokenMask], list[Met]]:
    """Which tokens are read at each site of a batch, by their norms there, and what was met.

    `mask`: the real tokens, `read`: those of them that may be read. "mean" leaves out the sinks of its own site; "all",
    whose rows are to be the same at all sites, what is a sink at any of them. `keep`: nothing is left out.
    """
    wanted = named(read, position)
    sinks = [sinks_among(each, mask) for each in norms]
    where = [wanted for _ in sinks]
    if position == "all" and not keep:
        where = [kept_of(wanted, torch.stack(sinks).any(0)) for _ in sinks]
    elif position == "mean" and not keep:
        where = [kept_of(wanted, each) for each in sinks]
    met = [
        Met(*(each[mask] for each in parts)) for parts in zip(norms, sinks, [wanted] * len(where), where, strict=True)
    ]
    return where, met


def read_sites(
    values: Sequence[Residual], mask: TokenMask, read: TokenMask, position: Position, keep: bool
) -> tuple[list[Samples], Int[Tensor, " n"], list[Met]]:
    """The activations at several sites of one batch, as `without_sinks` says, the row of each, and what was met."""
    where, met = without_sinks([norms_of(each) for each in values], mask, read, position, keep)
    found = [taken(each, chosen, position) for each, chosen in zip(values, where, strict=True)]
    return [samples for samples, _ in found], found[0][1], met


def warn_of_sinks(
    met: Sequence[Met], places: Sequence[str], position: Position, shown: Callable[[Tensor, int], str], stacklevel: int
) -> None:
    """Warn of the sinks that `position` met at the site with most of them: how many, which, what norms, what to type.

    `shown` writes some of the tokens that a mask points at, such as " ('The', ' ')", or nothing.
    """
    counts = [int((each.sinks & each.named).sum()) for each in met]
    most = max(range(len(met)), key=counts.__getitem__)
    if counts[most] == 0:
        return
    norms, sinks, wanted, read = met[most]
    hit = sinks & wanted
    sizes = f"of norm {float(norms[hit].median()):,.4g} where the others have {float(norms[~sinks].median()):,.4g}"
    others = sum(count > 0 for count in counts) - 1
    where = places[most] + (f" (and {others} more of the sites read)" if others else "")
    what = f"{int(hit.sum())} of the {int(wanted.sum())} tokens that position={position!r} names"
    said = f"At {where} {what} are attention sinks{shown(hit, 3)}, {sizes}: "
    if position in ("mean", "all"):
        kept = int((hit & read).sum())
        said += "they are left out. " if kept < counts[most] else "they are read all the same. "
        said += f"{kept} of them are read, as their texts have nothing else. " if 0 < kept < counts[most] else ""
        said += (
            "keep_sinks=True reads them with the others; skip=1 leaves out the first token of every text, sink or not."
        )
    else:
        said += (
            "what is fitted on them is about the sink and not about the text. Read another position, or put text "
            "before the token that is read; keep_sinks=True says that you mean it."
        )
    warnings.warn(said, stacklevel=stacklevel + 1)
