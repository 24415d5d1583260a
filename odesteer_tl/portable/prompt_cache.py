"""What methods compute from the last token of each prompt, kept while that prompt is continued. This file is sent to
servers, so it uses torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.token_tracks import TokenTrack


class PromptCache:
    """The values of `Edit.of_query` for the last prompt token of each row, kept while that prompt is continued."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.values = self.known = torch.empty(0, device="cpu")

    def of(self, track: TokenTrack, ends: tuple[Tensor, Tensor], value: Tensor, of_query: Any, rows: Tensor) -> Tensor:
        """of_query(value of the row's last prompt token) for each of the `rows` [chosen]. It is computed in the pass
        that has that token: at `ends` (rows, columns) of `value` [batch, pos, width]. Indices are on the CPU, so that
        nothing waits for the device. Raises ValueError for a row whose last prompt token was not seen."""
        batch = len(track.seen)
        if self.number != track.number or batch % len(self.known):
            self.number, self.known = track.number, torch.zeros(batch, dtype=torch.bool, device="cpu")
            self.values = value.new_zeros(batch, 0)
        beams = batch // len(self.known)
        known, values = self.known.repeat_interleave(beams, 0), self.values.repeat_interleave(beams, 0)
        end_rows, end_columns = ends
        if track.tree and len(end_rows) > len(end_rows.unique()):
            raise ValueError(
                "This method steers by the last token of a prompt, and a tree of tokens that branches before it has "
                "several: run each prompt as a tree of its own."
            )
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
