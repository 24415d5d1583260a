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
    next token comes as its own pass. `continues`: it is known to continue the rows of the previous pass. `positions`
    [batch, width]: those of the tokens of a tree, where columns do not follow each other.
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
        positions: Tensor | None = None,
    ) -> None:
        self.positions = positions
        self.batch, self.width, self.offset = batch, width, offset
        self.tokens, self.mask, self.caching, self.continues = tokens, mask, caching, continues


class TokenTrack:
    """The token positions of one pass, on the CPU. `index` [batch, width]: the position of each column. `real` [batch,
    width]: not a pad. `lengths` [batch]: prompt lengths in real tokens, as far as the passes show them. `seen` [batch]:
    real tokens so far.

    `number`: the number of the prompt. `known`: positions count from the start of the rows, because every pass was seen
    or its mask covers the cached columns. `ragged`: a row ends in a pad. `pads` [batch]: columns before the first real
    token. `tree`: several columns may have one position. `history`: the tokens of the passes so far, newest first, as
    (first column, tokens, earlier history).
    """

    def __init__(
        self, current: Pass, number: int, seen: Tensor, real: Tensor, previous: TokenTrack | None, known: bool
    ) -> None:
        columns = seen.unsqueeze(1) + real.long().cumsum(1) - 1
        self.real, self.number, self.known = real, number, known
        self.seen, self.tree = columns[:, -1] + 1, current.positions is not None
        self.index = columns if current.positions is None else current.positions
        self.ragged = bool((~real[:, -1] & (self.index[:, -1] >= 0)).any())
        self.columns, self.offset, self.tokens = current.offset + current.width, current.offset, current.tokens
        if previous is not None:
            self.lengths = previous.lengths
        else:
            self.lengths = seen if current.offset else real.sum(1)  # columns cached by an unseen pass count as prompt
        leading = (self.index < 0).sum(1)
        self.pads = leading if previous is None or current.offset == 0 else previous.pads + leading
        self.history = _history(current, previous if current.offset else None)

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

    def stepped(self, current: Pass) -> TokenTrack:
        """Fast path for one decoded token, real in every row: the same result as `TokenTrack(now, …)`."""
        track = object.__new__(TokenTrack)
        track.__dict__.update(self.__dict__)
        track.index, track.seen, track.tree = self.seen.unsqueeze(1), self.seen + 1, False
        track.real = torch.ones_like(track.index, dtype=torch.bool)
        track.columns, track.offset, track.tokens = current.offset + current.width, current.offset, current.tokens
        track.history = _history(current, self)
        return track

    def rewound(self, current: Pass) -> TokenTrack:
        """The track without the columns from `now.offset` on, as when speculative decoding rejects tokens. These were
        generated, so they are real in every row."""
        track = object.__new__(TokenTrack)
        track.__dict__.update(self.__dict__)
        track.seen = self.seen - (self.columns - current.offset)
        track.columns = current.offset
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


def _history(current: Pass, previous: TokenTrack | None) -> Any:
    """(first column, token ids, history of the previous passes); None if one of the passes has no ids."""
    ids = current.tokens
    earlier = None if previous is None else previous.history
    if ids is None or ids.ndim != 2 or ids.is_floating_point() or (current.offset > 0 and earlier is None):
        return None
    return (current.offset, ids, earlier)


def follow(
    previous: TokenTrack | None, current: Pass, prompt_lengths: Tensor | None = None, unambiguous: bool = True
) -> TokenTrack:
    """The track of the pass `current`, which comes after `previous`; `prompt_lengths` [batch]: those the user gave.

    A pass after cached columns continues its prompt, even if some generated columns were removed from the cache. With
    the cache off, a pass continues its prompt if its rows extend rows of the previous pass by one column, or repeat a
    text that was generated with the cache on. Any other pass begins a new prompt. Raises ValueError for a continued row
    that ends in a pad, and for several columns after cached ones unless `unambiguous` (see `token_rules`).
    """
    continued = None if previous is None else carried_on(previous, current, prompt_lengths)
    if continued is not None and continued.ragged:
        raise right_padded()
    number = 0 if previous is None else previous.number if continued is not None else previous.number + 1
    if previous is not None and previous.tree and current.offset > previous.offset:
        raise ValueError(
            "A pass follows a tree of tokens in the cache, and which branch it continues cannot be told: crop the "
            "cache to what comes before the tree, and run the branch again."
        )
    if current.positions is not None and not unambiguous:
        raise ValueError(
            "A pass over a tree of tokens does not show where the prompt ends: pass prompt_lengths= (real tokens of "
            "each prompt) to say so."
        )
    if current.offset == 0:
        seen = torch.zeros(current.batch, dtype=torch.long, device="cpu")
        return _checked(current, TokenTrack(current, number, seen, mask_of(current), continued, True))
    if current.width > 1 and not unambiguous:
        raise ValueError(
            f"A pass of {current.width} tokens follows {current.offset} cached ones: is it prompt or continuation? "
            "Pass prompt_lengths= (real tokens of each prompt) to say so."
        )
    seen = mask_of(current, cached=True)[:, : -current.width].sum(1) if continued is None else continued.seen
    # One token after cached ones is real. Its mask is not read, so nothing waits for the device.
    is_real = current.width == 1 and (prompt_lengths is None or bool((seen >= prompt_lengths).all()))
    if is_real and continued is not None:
        return continued.stepped(current)
    covered = current.mask is None or current.mask.shape[1] >= current.offset + current.width
    known = covered if continued is None else continued.known
    real = torch.ones(current.batch, 1, dtype=torch.bool, device="cpu") if is_real else mask_of(current)
    return _checked(current, TokenTrack(current, number, seen, real, continued, known))


def carried_on(previous: TokenTrack, current: Pass, prompt_lengths: Tensor | None = None) -> TokenTrack | None:
    """The track that `current` continues, with one entry per row of `current`; None if `current` begins a new prompt.

    With a cache: `current` has the same rows, or several beams per row, and the cache holds all tokens seen, or the
    whole prompt (`prompt_lengths`) and a part of what followed. Without: each row extends an earlier row by one token.
    """
    batch = len(previous.seen)
    if current.offset > 0:
        if current.batch % batch or current.offset > previous.columns:
            return None
        if current.offset < previous.columns:
            lengths = previous.lengths if prompt_lengths is None or len(prompt_lengths) != batch else prompt_lengths
            if current.offset < int((previous.pads + lengths).max()):
                return None
            previous = previous.rewound(current)
        if current.batch == batch:
            return previous
        parents = torch.arange(batch, device="cpu").repeat_interleave(current.batch // batch)
    elif current.continues:
        return previous
    else:
        if current.caching or current.tokens is None:
            return None
        if previous.offset > 0 or previous.tokens is None:
            return previous if previous.replayed(current.tokens) else None
        start = current.tokens[:, :-1]
        if start.shape != previous.tokens.shape:
            return None
        if torch.equal(start, previous.tokens):
            return previous
        same = torch.stack([(row == previous.tokens).flatten(1).all(1) for row in start]).cpu()
        if not bool(same.any(1).all()):
            return None
        parents = same.int().argmax(1)
    return previous.rows(parents)


def mask_of(current: Pass, cached: bool = False) -> Tensor:
    """The real tokens [batch, columns] of the present columns, or, with `cached`, of all. Without a mask: all."""
    width = current.width + (current.offset if cached else 0)
    if current.mask is None or current.mask.shape[1] < width:
        return torch.ones(current.batch, width, dtype=torch.bool, device="cpu")
    return current.mask[:, -width:].bool().cpu()


def right_padded() -> ValueError:
    """The error for a prompt that ends in pads and is continued."""
    return ValueError(
        "Right-padded prompts cannot be continued: the next token would follow a pad. Pad on the left, and pass "
        'attention_mask= or padding_side="left" to generate.'
    )


def _checked(current: Pass, track: TokenTrack) -> TokenTrack:
    if track.ragged and current.caching:
        raise right_padded()
    return track
