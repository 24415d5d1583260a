"""Positions: which tokens of a forward pass are steered.

The position of a token is its index among the real tokens of its row: the same number with the KV cache on or off, on
its own or padded in a batch. A `Tracker` follows the passes of a model and says for each one which tokens are chosen.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from odesteer_tl.shapes import Columns, Indices, PerRow, TokenIds, TokenKeys, TokenMask
from odesteer_tl.travelling import chosen_by

Positions = Literal["decoding", "generated", "prompt", "all"] | slice | Bool[Tensor, " pos"] | Bool[Tensor, "batch pos"]
"""Which tokens are steered. "decoding": the last prompt token and every generated one; "generated": those alone;
"prompt": the prompt alone; "all". A slice or a bool mask (one for all rows, or one per row) counts from the row's first
real token; what lies beyond a mask's end is not steered. Pads never are."""

PromptLengths = int | list[int] | tuple[int, ...] | PerRow
"""Real tokens of each row's prompt: one number for all rows, or one per row."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass as its caller made it: `width` columns after `offset` cached ones.

    `mask` covers the cached columns too; None where the caller gave none. `caching`: keys and values are kept, so that
    the next token comes as a pass of its own.
    """

    batch: int
    width: int
    offset: int = 0
    tokens: TokenKeys | None = None
    mask: Columns | None = None
    caching: bool = False


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen tokens of one pass, on the CPU: batch row, column of the chunk, position in the row.

    `everything`: all columns of all rows, so that nothing needs to be picked out. `prompt` numbers the prompts seen.
    """

    rows: Indices
    columns: Indices
    positions: Indices
    everything: bool
    prompt: int


@dataclass(eq=False)
class _Prompt:
    """What is remembered between passes. `seen` counts each row's real tokens so far; `lengths` those of its prompt."""

    number: int
    lengths: PerRow
    seen: PerRow
    columns: int
    offset: int
    ragged: bool
    tokens: TokenKeys | None


class Tracker:
    """Follows forward passes, and chooses the tokens to steer in each.

    A pass after cached columns continues its prompt. So does, with the cache off, a pass whose rows extend rows of the
    previous pass by one column. Any other pass begins a new prompt, and all its real tokens are the prompt; where that
    is not so (teacher forcing, prefill in chunks), `lengths` says how many are. `pad_id` serves to notice pads
    that no mask declares.
    """

    def __init__(
        self, positions: Positions, lengths: PromptLengths | None = None, pad_id: int | None = None, beams: int = 1
    ) -> None:
        self.positions = checked(positions)
        self.lengths = None if lengths is None else torch.as_tensor(lengths).cpu()
        self.pad_id, self.beams = pad_id, beams
        self._prompt: _Prompt | None = None

    def select(self, now: Pass) -> Selection:
        """The chosen tokens of a pass.

        Raises ValueError for pads without a mask, for a padded end that is then continued, for a prompt in chunks
        without `prompt_lengths`, and for `prompt_lengths` or a mask of another number of rows.
        """
        before = self._prompt
        carried = None if before is None else _carried(before, now)
        given = None if self.lengths is None else _per_row(self.lengths, now.batch, self.beams)
        seen, real = self._real(now, carried, given)
        index = seen.unsqueeze(1) + real.long().cumsum(1) - 1
        ragged = bool((~real[:, -1] & (index[:, -1] >= 0)).any())  # a pad after a real token
        if ragged and now.caching:
            raise _right_padded()
        if carried is not None:
            number, lengths = carried.number, carried.lengths
        else:
            number = 0 if before is None else before.number + 1
            lengths = seen if now.offset else real.sum(1)  # what is cached elsewhere counts as prompt
        lengths = lengths if given is None else given
        columns = now.offset + now.width
        self._prompt = _Prompt(number, lengths, index[:, -1] + 1, columns, now.offset, ragged, now.tokens)
        chosen = self._rule(index, lengths) & real
        rows, places = chosen.nonzero(as_tuple=True)
        return Selection(rows, places, index[rows, places], bool(chosen.all()), number)

    def _real(self, now: Pass, carried: _Prompt | None, given: PerRow | None) -> tuple[PerRow, TokenMask]:
        """How many real tokens each row has before this pass, and which of the present ones are real."""
        if now.offset == 0:
            if carried is None:
                self._refuse_undeclared_pads(now)
            elif carried.ragged:
                raise _right_padded()
            return torch.zeros(now.batch, dtype=torch.long), _mask(now)
        if now.width > 1 and given is None and isinstance(self.positions, str) and self.positions != "all":
            raise ValueError(
                f"A pass of {now.width} tokens follows {now.offset} cached ones: is it prompt or continuation? "
                "Pass prompt_lengths= (real tokens of each prompt) to say so."
            )
        seen = _mask(now, cached=True)[:, : -now.width].sum(1) if carried is None else carried.seen
        if now.width == 1 and (given is None or bool((seen >= given).all())):
            # One token after cached ones is real; leaving its mask unread spares the device a synchronisation.
            return seen, torch.ones(now.batch, 1, dtype=torch.bool)
        return seen, _mask(now)

    def _rule(self, index: Int[Tensor, "batch pos"], lengths: PerRow) -> TokenMask:
        rule = self.positions
        if isinstance(rule, Tensor):
            rule = rule.cpu() if rule.ndim == 1 else _per_row(rule.cpu(), len(index), self.beams)
        return chosen_by(rule, index, lengths)

    def _refuse_undeclared_pads(self, now: Pass) -> None:
        """Libraries fill in a mask of ones where they were told nothing, so ones do not vouch for the beginnings; they
        do for the ends, where the pad id is often the end-of-text id that closes a text."""
        ids = now.tokens
        if ids is None or ids.ndim != 2 or ids.is_floating_point() or self.pad_id is None:
            return
        if now.mask is not None and not bool(now.mask.bool().all()):
            return
        if uneven_pads(ids, self.pad_id, ends=now.mask is None):
            raise ValueError(
                f"The rows begin or end in different numbers of the pad token {self.pad_id}, and nothing says which "
                "tokens are padded: pad on the left, and pass attention_mask= with the tokens to the model, or "
                'padding_side="left" to generate and with texts.'
            )


def uneven_pads(ids: TokenIds, pad_id: int, *, ends: bool = True) -> bool:
    """Whether the rows begin (or, with `ends`, end) in different numbers of `pad_id`: then some of those are padding.

    Equal numbers are no evidence: one BOS at the head of every row is not a pad, even where both have the same id.
    """
    other = ids != pad_id
    runs = [(other.cumsum(1) == 0).sum(1)] + ([(other.flip(1).cumsum(1) == 0).sum(1)] if ends else [])
    return any(bool((run != run[0]).any()) for run in runs)


def checked(positions: Any) -> Positions:
    """`positions`, or ValueError saying what it can be."""
    if isinstance(positions, slice):
        if (
            any(edge is not None and edge < 0 for edge in (positions.start, positions.stop))
            or (positions.step or 1) < 1
        ):
            raise ValueError(
                f"A slice of positions counts forwards from the row's first real token, got {positions}; for the last "
                'prompt token and what follows, type positions="decoding".'
            )
    elif isinstance(positions, Tensor):
        if positions.dtype != torch.bool or positions.ndim not in (1, 2) or positions.shape[-1] == 0:
            raise ValueError(
                f"A mask of positions is bool, [pos] or [batch, pos], got {positions.dtype} {positions.shape}."
            )
    elif positions not in ("decoding", "generated", "prompt", "all"):
        raise ValueError(
            'positions must be "decoding", "generated", "prompt", "all", a slice or a bool mask that counts from the '
            f"row's first real token; got {positions!r}."
        )
    return positions


def _carried(before: _Prompt, now: Pass) -> _Prompt | None:
    """The prompt that `now` continues, one entry per row of `now`; None where it begins a new one.

    Cached: the same rows, or several beams for each. Uncached: each row extends some earlier row by one token.
    """
    batch = len(before.seen)
    if now.offset > 0:
        if now.offset != before.columns or now.batch % batch:
            return None
        parents = torch.arange(batch).repeat_interleave(now.batch // batch)
    else:
        if now.caching or before.offset > 0 or before.tokens is None or now.tokens is None:
            return None
        start = now.tokens[:, :-1]
        if start.shape != before.tokens.shape:
            return None
        parents = torch.arange(batch)
        if not torch.equal(start, before.tokens):
            same = torch.stack([(row == before.tokens).flatten(1).all(1) for row in start]).cpu()
            if not bool(same.any(1).all()):
                return None
            parents = same.int().argmax(1)
    return replace(before, lengths=before.lengths[parents], seen=before.seen[parents])


def _mask(now: Pass, cached: bool = False) -> TokenMask:
    """The real tokens among the present columns, or among all of them; all are real where no mask says otherwise."""
    width = now.width + (now.offset if cached else 0)
    if now.mask is None or now.mask.shape[1] < width:
        return torch.ones(now.batch, width, dtype=torch.bool)
    return now.mask[:, -width:].bool().cpu()


def _per_row(values: Tensor, batch: int, beams: int) -> Tensor:
    """One value per row of the batch, where `values` holds one per prompt."""
    if values.ndim == 0:
        return values.expand(batch)
    if len(values) * beams != batch:
        raise ValueError(
            f"prompt_lengths and masks of positions need one entry per row: the model sees {batch} rows, "
            f"{len(values)} were given."
        )
    return values.repeat_interleave(beams, 0)


def _right_padded() -> ValueError:
    return ValueError(
        "Right-padded prompts cannot be continued: the next token would follow a pad. Pad on the left, and pass "
        'attention_mask= or padding_side="left" to generate.'
    )
