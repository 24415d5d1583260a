"""Token tracking over forward passes: which columns are real tokens, and the position of each in its row.

The position of a token is its index among the real tokens of its row. It is the same with the KV cache on or off, alone
or padded in a batch. This file is sent to servers, so it uses plain classes and torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Pass:
    """One forward pass as it was called: `batch` rows of `width` columns, after `offset` cached columns.

    `tokens` [batch, width, …]: ids, or embeddings where the model was called with those. `mask` [batch, columns] covers
    all columns, or only the present ones; None if the caller gave none. `caching`: keys and values are kept, so the
    next token comes as its own pass. `continues`: it is known to continue the rows of the previous pass.
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
    """The token positions of one pass, on the CPU. `index` [batch, width]: the position of each column. `real` [batch,
    width]: not a pad. `lengths` [batch]: prompt lengths in real tokens, as far as the passes show them. `seen` [batch]:
    real tokens so far.

    `number`: the number of the prompt. `known`: positions count from the start of the rows, because every pass was seen
    or its mask covers the cached columns. `ragged`: a row ends in a pad. `pads` [batch]: columns before the first real
    token. `history`: the tokens of the passes so far, newest first, as (first column, tokens, earlier history).
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
            self.lengths = seen if now.offset else real.sum(1)  # columns cached by an unseen pass count as prompt
        leading = (self.index < 0).sum(1)
        self.pads = leading if before is None or now.offset == 0 else before.pads + leading
        self.history = _history(now, before if now.offset else None)

    def ends(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, columns) of the last prompt tokens that lie in this pass, for prompts of `lengths` [batch] tokens."""
        rows, columns = ((self.index == lengths.unsqueeze(1) - 1) & self.real).nonzero(as_tuple=True)
        return rows, columns

    def rows(self, parents: Tensor) -> TokenTrack:
        """The track of a batch whose row i continues row parents[i]."""
        track = object.__new__(TokenTrack)
        track.__dict__.update(self.__dict__)
        track.lengths, track.seen, track.pads = self.lengths[parents], self.seen[parents], self.pads[parents]
        return track

    def stepped(self, now: Pass) -> TokenTrack:
        """Fast path for one decoded token, real in every row: the same result as `TokenTrack(now, …)`."""
        track = object.__new__(TokenTrack)
        track.__dict__.update(self.__dict__)
        track.index, track.seen = self.seen.unsqueeze(1), self.seen + 1
        track.real = torch.ones_like(track.index, dtype=torch.bool)
        track.columns, track.offset, track.tokens = now.offset + now.width, now.offset, now.tokens
        track.history = _history(now, self)
        return track

    def rewound(self, now: Pass) -> TokenTrack:
        """The track without the columns from `now.offset` on, as when speculative decoding rejects tokens. These were
        generated, so they are real in every row."""
        track = object.__new__(TokenTrack)
        track.__dict__.update(self.__dict__)
        track.seen = self.seen - (self.columns - now.offset)
        track.columns = now.offset
        return track

    def broken_off(self) -> TokenTrack:
        """The track of a pass that was not completed: no later pass continues it."""
        track = object.__new__(TokenTrack)
        track.__dict__.update(self.__dict__)
        track.columns, track.offset, track.tokens, track.history, track.ragged = 0, 0, None, None, False
        return track

    def replayed(self, tokens: Tensor | None) -> bool:
        """Whether `tokens` [batch, pos] are all tokens seen of these rows, and at most one more: the text that was just
        generated, run again as one pass."""
        if self.offset == 0 or tokens is None or tokens.ndim != 2 or self.history is None:
            return False
        if tokens.shape[0] != len(self.seen) or tokens.shape[1] not in (self.columns, self.columns + 1):
            return False
        parts, end, history = [], self.columns, self.history
        while history is not None and end > 0:
            start, ids, history = history
            if start < end:
                parts.append(ids[:, : end - start].to(tokens.device))
                end = start
        earlier = torch.cat(parts[::-1], dim=1) if end == 0 else tokens[:, :0]
        return torch.equal(earlier, tokens[:, : self.columns])


class PromptCache:
    """The values of `Edit.of_query` for the last prompt token of each row, kept while that prompt is continued."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.values = self.known = torch.empty(0)

    def of(self, track: TokenTrack, ends: tuple[Tensor, Tensor], value: Tensor, of_query: Any, rows: Tensor) -> Tensor:
        """of_query(value of the row's last prompt token) for each of the `rows` [chosen]. It is computed in the pass
        that has that token: at `ends` (rows, columns) of `value` [batch, pos, width]. Indices are on the CPU, so that
        nothing waits for the device. Raises ValueError for a row whose last prompt token was not seen."""
        batch = len(track.seen)
        if self.number != track.number or batch % len(self.known):
            self.number, self.known = track.number, torch.zeros(batch, dtype=torch.bool)
            self.values = value.new_zeros(batch, 0)
        beams = batch // len(self.known)
        known, values = self.known.repeat_interleave(beams, 0), self.values.repeat_interleave(beams, 0)
        end_rows, end_columns = ends
        if len(end_rows):
            index = end_rows.to(value.device, non_blocking=True), end_columns.to(value.device, non_blocking=True)
            new = of_query(value[index])
            known, values = known.clone(), values if values.shape[1] else new.new_zeros(batch, *new.shape[1:])
            known[end_rows] = True
            values = values.index_put(index[:1], new)
        self.known, self.values = known, values
        if not bool(known[rows].all()):
            raise ValueError(
                "This method steers by the last token of a prompt, and a token is to be steered before that one was "
                'seen: run the whole prompt in one pass inside the block, or give positions="decoding".'
            )
        return values[rows.to(values.device, non_blocking=True)]


def _history(now: Pass, before: TokenTrack | None) -> Any:
    """(first column, token ids, history of the previous passes); None if one of the passes has no ids."""
    ids = now.tokens
    earlier = None if before is None else before.history
    if ids is None or ids.ndim != 2 or ids.is_floating_point() or (now.offset > 0 and earlier is None):
        return None
    return (now.offset, ids, earlier)


def follow(before: TokenTrack | None, now: Pass, given: Tensor | None = None, unambiguous: bool = True) -> TokenTrack:
    """The track of the pass `now`, which comes after `before`; `given` [batch] are prompt lengths that the user gave.

    A pass after cached columns continues its prompt, even if some generated columns were removed from the cache. With
    the cache off, a pass continues its prompt if its rows extend rows of the previous pass by one column, or repeat a
    text that was generated with the cache on. Any other pass begins a new prompt. Raises ValueError for a continued row
    that ends in a pad, and for several columns after cached ones unless `unambiguous` (see `token_rules`).
    """
    continued = None if before is None else carried_on(before, now, given)
    if continued is not None and continued.ragged:
        raise right_padded()
    number = 0 if before is None else before.number if continued is not None else before.number + 1
    if now.offset == 0:
        return _checked(
            now, TokenTrack(now, number, torch.zeros(now.batch, dtype=torch.long), mask_of(now), continued, True)
        )
    if now.width > 1 and not unambiguous:
        raise ValueError(
            f"A pass of {now.width} tokens follows {now.offset} cached ones: is it prompt or continuation? "
            "Pass prompt_lengths= (real tokens of each prompt) to say so."
        )
    seen = mask_of(now, cached=True)[:, : -now.width].sum(1) if continued is None else continued.seen
    # One token after cached ones is real. Its mask is not read, so nothing waits for the device.
    is_real = now.width == 1 and (given is None or bool((seen >= given).all()))
    if is_real and continued is not None:
        return continued.stepped(now)
    known = (
        continued.known if continued is not None else now.mask is None or now.mask.shape[1] >= now.offset + now.width
    )
    real = torch.ones(now.batch, 1, dtype=torch.bool) if is_real else mask_of(now)
    return _checked(now, TokenTrack(now, number, seen, real, continued, known))


def carried_on(before: TokenTrack, now: Pass, given: Tensor | None = None) -> TokenTrack | None:
    """The track that `now` continues, with one entry per row of `now`; None if `now` begins a new prompt.

    With a cache: `now` has the same rows, or several beams per row, and the cache holds all tokens seen, or the whole
    prompt (of `given` tokens) and a part of what followed. Without: each row extends some earlier row by one token.
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
    """The real tokens [batch, columns] among the present columns, or, with `cached`, among all. Without a mask all are
    real."""
    width = now.width + (now.offset if cached else 0)
    if now.mask is None or now.mask.shape[1] < width:
        return torch.ones(now.batch, width, dtype=torch.bool)
    return now.mask[:, -width:].bool().cpu()


def right_padded() -> ValueError:
    """The error for a prompt that ends in pads and is continued."""
    return ValueError(
        "Right-padded prompts cannot be continued: the next token would follow a pad. Pad on the left, and pass "
        'attention_mask= or padding_side="left" to generate.'
    )


def _checked(now: Pass, track: TokenTrack) -> TokenTrack:
    if track.ragged and now.caching:
        raise right_padded()
    return track
