"""Token tracking over forward passes: which columns are real tokens, and which token of its row each one is.

The position of a token is its index among the real tokens of its row: the same number with the KV cache on or off, on
its own or padded in a batch. This travels to remote servers, and works with plain classes and torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Pass:
    """One forward pass as its caller made it: `width` columns after `offset` cached ones, of `batch` rows.

    `tokens` [batch, width, …] tell tokens apart. `mask` [batch, columns] covers the cached columns too, or the present
    ones alone; None where the caller gave none. `caching`: keys and values are kept, so that the next token comes as a
    pass of its own. `continues`: it is known to go on with the rows of the pass before.
    """

    def __init__(
        self,
        batch: int,
        width: int,
        offset: int = 0,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        caching: bool = False,
        continues: bool = False,
    ) -> None:
        self.batch, self.width, self.offset = batch, width, offset
        self.tokens, self.mask, self.caching, self.continues = tokens, mask, caching, continues


class TokenTrack:
    """Where a pass stands, on the CPU. `index` [batch, width]: the position of each column; `real` [batch, width]: no
    pad; `lengths` [batch]: real tokens of each row's prompt, as far as passes can tell; `seen` [batch]: those so far.

    `number` counts prompts. `known`: positions count from the rows' beginnings, which all passes since have seen.
    `ragged`: a row ends in a pad. `pads` [batch]: columns before the first real one. `history`: the tokens of the
    passes so far, newest first, as (first column, tokens, earlier ones).
    """

    def __init__(
        self, now: Pass, number: int, seen: Tensor, real: Tensor, before: TokenTrack | None, known: bool
    ) -> None:
        self.index = seen.unsqueeze(1) + real.long().cumsum(1) - 1
        self.real, self.number, self.known = real, number, known
        self.seen = self.index[:, -1] + 1
        self.ragged = bool((~real[:, -1] & (self.index[:, -1] >= 0)).any())
        self.columns, self.offset, self.tokens = now.offset + now.width, now.offset, now.tokens
        if before is not None:
            self.lengths = before.lengths
        else:
            self.lengths = seen if now.offset else real.sum(1)  # what is cached elsewhere counts as prompt
        leading = (self.index < 0).sum(1)
        self.pads = leading if before is None or now.offset == 0 else before.pads + leading
        self.history = _told_later(now, before if now.offset else None)

    def ends(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the last token of each prompt of `lengths` [batch] tokens, where this pass shows it."""
        rows, columns = ((self.index == lengths.unsqueeze(1) - 1) & self.real).nonzero(as_tuple=True)
        return rows, columns

    def rows(self, parents: Tensor) -> TokenTrack:
        """The same for a batch whose row i continues row parents[i]."""
        found = object.__new__(TokenTrack)
        found.__dict__.update(self.__dict__)
        found.lengths, found.seen, found.pads = self.lengths[parents], self.seen[parents], self.pads[parents]
        return found

    def stepped(self, now: Pass) -> TokenTrack:
        """Fast path: advance all rows by one decoded token, real in all of them, as `TokenTrack` would count it."""
        found = object.__new__(TokenTrack)
        found.__dict__.update(self.__dict__)
        found.index, found.seen = self.seen.unsqueeze(1), self.seen + 1
        found.real = torch.ones_like(found.index, dtype=torch.bool)
        found.columns, found.offset, found.tokens = now.offset + now.width, now.offset, now.tokens
        found.history = _told_later(now, self)
        return found

    def rewound(self, now: Pass) -> TokenTrack:
        """The same rows with the columns from `now.offset` on taken back, as where guessed tokens were refused. What
        is taken back was generated, and so is real in every row."""
        found = object.__new__(TokenTrack)
        found.__dict__.update(self.__dict__)
        found.seen = self.seen - (self.columns - now.offset)
        found.columns = now.offset
        return found

    def broken_off(self) -> TokenTrack:
        """The same of a pass that was not completed, which no other continues."""
        found = object.__new__(TokenTrack)
        found.__dict__.update(self.__dict__)
        found.columns, found.offset, found.tokens, found.history, found.ragged = 0, 0, None, None, False
        return found

    def replayed(self, tokens: Tensor | None) -> bool:
        """Whether `tokens` [batch, pos] are all that was seen of these rows, and at most one token more: the text that
        was just generated, run once more as a whole."""
        if self.offset == 0 or tokens is None or tokens.ndim != 2 or self.history is None:
            return False
        if tokens.shape[0] != len(self.seen) or tokens.shape[1] not in (self.columns, self.columns + 1):
            return False
        parts, end, kept = [], self.columns, self.history
        while kept is not None and end > 0:
            start, own, kept = kept
            if start < end:
                parts.append(own[:, : end - start].to(tokens.device))
                end = start
        whole = torch.cat(parts[::-1], dim=1) if end == 0 else tokens[:, :0]
        return torch.equal(whole, tokens[:, : self.columns])


class PromptCache:
    """What was made of the last token of each row's prompt, for as long as that prompt is continued."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.values = self.known = torch.empty(0)

    def of(self, now: TokenTrack, ends: tuple[Tensor, Tensor], value: Tensor, answer: Any, rows: Tensor) -> Tensor:
        """answer(value of its prompt's last token) for each of the `rows` [chosen]; it is asked anew where `value`
        [batch, pos, width] shows that token, at `ends`. Indices are on the CPU, so that nothing waits for the device.
        Raises ValueError for a row whose last token was not seen."""
        batch = len(now.seen)
        if self.number != now.number or batch % len(self.known):
            self.number, self.known = now.number, torch.zeros(batch, dtype=torch.bool)
            self.values = value.new_zeros(batch, 0)
        beams = batch // len(self.known)
        known, values = self.known.repeat_interleave(beams, 0), self.values.repeat_interleave(beams, 0)
        at, columns = ends
        if len(at):
            there = at.to(value.device, non_blocking=True), columns.to(value.device, non_blocking=True)
            new = answer(value[there])
            known, values = known.clone(), values if values.shape[1] else new.new_zeros(batch, *new.shape[1:])
            known[at] = True
            values = values.index_put(there[:1], new)
        self.known, self.values = known, values
        if not bool(known[rows].all()):
            raise ValueError(
                "This method steers by the last token of a prompt, and a token is to be steered before that one was "
                'seen: let the whole prompt run at once and inside the block, or use positions="decoding".'
            )
        return values[rows.to(values.device, non_blocking=True)]


def _told_later(now: Pass, before: TokenTrack | None) -> Any:
    """The history of a pass: its token ids after those of the passes before; None where a pass has none."""
    ids = now.tokens
    earlier = None if before is None else before.history
    if ids is None or ids.ndim != 2 or ids.is_floating_point() or (now.offset > 0 and earlier is None):
        return None
    return (now.offset, ids, earlier)


def follow(before: TokenTrack | None, now: Pass, given: Tensor | None = None, told: bool = True) -> TokenTrack:
    """Where a pass stands that comes after `before`; `given` [batch] are prompt lengths that the caller knows.

    A pass after cached columns continues its prompt, also where some of those after the prompt were taken back. So
    does, with the cache off, a pass whose rows extend rows of the previous pass by one column, or repeat a text that
    was generated with the cache on. Any other pass begins a new prompt. Raises ValueError for a padded end that is then
    continued, and, unless `told` which is which, for several columns after cached ones.
    """
    carried = None if before is None else carried_on(before, now, given)
    if carried is not None and carried.ragged:
        raise right_padded()
    number = 0 if before is None else before.number if carried is not None else before.number + 1
    if now.offset == 0:
        return _checked(
            now, TokenTrack(now, number, torch.zeros(now.batch, dtype=torch.long), mask_of(now), carried, True)
        )
    if now.width > 1 and not told:
        raise ValueError(
            f"A pass of {now.width} tokens follows {now.offset} cached ones: is it prompt or continuation? "
            "Pass prompt_lengths= (real tokens of each prompt) to say so."
        )
    seen = mask_of(now, cached=True)[:, : -now.width].sum(1) if carried is None else carried.seen
    # One token after cached ones is real; leaving its mask unread spares the device a synchronisation.
    real = now.width == 1 and (given is None or bool((seen >= given).all()))
    if real and carried is not None:
        return carried.stepped(now)
    known = carried.known if carried is not None else now.mask is None or now.mask.shape[1] >= now.offset + now.width
    shown = torch.ones(now.batch, 1, dtype=torch.bool) if real else mask_of(now)
    return _checked(now, TokenTrack(now, number, seen, shown, carried, known))


def carried_on(before: TokenTrack, now: Pass, given: Tensor | None = None) -> TokenTrack | None:
    """The prompt that `now` continues, one entry per row of `now`; None where it begins a new one.

    Cached: the same rows, or several beams for each, where all that was seen is cached, or all of the prompt (of
    `given` tokens) and a part of what followed. Uncached: each row extends some earlier row by one token.
    """
    batch = len(before.seen)
    if now.offset > 0:
        if now.batch % batch or now.offset > before.columns:
            return None
        if now.offset < before.columns:
            lengths = before.lengths if given is None or len(given) != batch else given
            if now.offset < int((before.pads + lengths).max()):
                return None
            before = before.rewound(now)
        if now.batch == batch:
            return before
        parents = torch.arange(batch).repeat_interleave(now.batch // batch)
    elif now.continues:
        return before
    else:
        if now.caching or now.tokens is None:
            return None
        if before.offset > 0 or before.tokens is None:
            return before if before.replayed(now.tokens) else None
        start = now.tokens[:, :-1]
        if start.shape != before.tokens.shape:
            return None
        if torch.equal(start, before.tokens):
            return before
        same = torch.stack([(row == before.tokens).flatten(1).all(1) for row in start]).cpu()
        if not bool(same.any(1).all()):
            return None
        parents = same.int().argmax(1)
    return before.rows(parents)


def mask_of(now: Pass, cached: bool = False) -> Tensor:
    """The real tokens among the present columns, or among all of them; all are real where no mask says otherwise."""
    width = now.width + (now.offset if cached else 0)
    if now.mask is None or now.mask.shape[1] < width:
        return torch.ones(now.batch, width, dtype=torch.bool)
    return now.mask[:, -width:].bool().cpu()


def right_padded() -> ValueError:
    """What is wrong with pads after the last token of a prompt that goes on."""
    return ValueError(
        "Right-padded prompts cannot be continued: the next token would follow a pad. Pad on the left, and pass "
        'attention_mask= or padding_side="left" to generate.'
    )


def _checked(now: Pass, found: TokenTrack) -> TokenTrack:
    if found.ragged and now.caching:
        raise right_padded()
    return found
