"""Positions: which tokens of a forward pass are steered.

The position of a token is its index among the real tokens of its row. It is the same with the KV cache on or off, and
for a row alone or padded in a batch. A `Tracker` follows the passes of a model and chooses the tokens in each.
"""

from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from odesteer_tl._shapes import PerRow, TokenIds
from odesteer_tl.portable.apply_edits import Selection, selected
from odesteer_tl.portable.token_rules import checked, is_unambiguous, lengths_of, per_row
from odesteer_tl.portable.token_tracks import Pass, TokenTrack, follow

Positions = Literal["decoding", "generated", "prompt", "all"] | slice | Bool[Tensor, " pos"] | Bool[Tensor, "batch pos"]
"""Which tokens are steered. "decoding": the last prompt token and every generated one; "generated": those alone;
"prompt": the prompt alone; "all". A slice or a bool mask (one for all rows, or one per row) counts from the row's first
real token; what lies beyond a mask's end is not steered. Pads never are."""

PromptLengths = int | list[int] | tuple[int, ...] | PerRow
"""Real tokens of each row's prompt: one number for all rows, or one per row."""


class Tracker:
    """Follows forward passes, and chooses the tokens to steer in each (see `token_tracks.follow`).

    All real tokens of a pass that begins a new prompt are that prompt. Where they are not (teacher forcing, prefill in
    chunks), `lengths` is the number of prompt tokens. `pad_id` serves to detect pads that no mask declares.
    `needs_prompt_end`: the edits use the prompt's last token, whatever the positions.
    """

    def __init__(
        self,
        positions: Positions,
        lengths: PromptLengths | None = None,
        pad_id: int | None = None,
        beams: int = 1,
        needs_prompt_end: bool = False,
    ) -> None:
        self.positions = checked(positions)
        self.lengths = None if lengths is None else lengths_of(lengths)
        self.pad_id, self.beams, self.needs_prompt_end = pad_id, beams, needs_prompt_end
        self.last: TokenTrack | None = None

    def select(self, current: Pass) -> Selection:
        """The chosen tokens of a pass.

        Raises ValueError for pads without a mask, for a right-padded row that is continued, for a prompt in chunks
        without `prompt_lengths`, and for `prompt_lengths` or a mask with another number of rows.
        """
        lengths = None if self.lengths is None else per_row(self.lengths, current.batch, self.beams)
        track = follow(self.last, current, lengths, is_unambiguous(self.positions, lengths, self.needs_prompt_end))
        if current.offset == 0 and (self.last is None or track.number != self.last.number):
            self._refuse_undeclared_pads(current)
        self.last = track
        return selected(self.positions, track, track.lengths if lengths is None else lengths, self.beams)

    def break_off(self) -> None:
        """Mark the last pass as not completed: no later pass continues it."""
        self.last = None if self.last is None else self.last.broken_off()

    def _refuse_undeclared_pads(self, now: Pass) -> None:
        """Raise ValueError where rows have different numbers of pads and no mask declares them.

        Libraries fill in a mask of ones where they were given none, so ones prove nothing about pads at the beginning.
        At the end they are trusted: the pad id there is often the end-of-text id that closes a text.
        """
        ids = now.tokens
        if ids is None or ids.ndim != 2 or ids.is_floating_point() or self.pad_id is None:
            return
        if now.mask is not None and not bool(now.mask.bool().all()):
            return
        if uneven_pads(ids, self.pad_id, ends=now.mask is None):
            raise ValueError(
                f"The rows begin or end in different numbers of the pad token {self.pad_id}, and no mask says which "
                "tokens are padding: pad on the left, and pass attention_mask= with the tokens to the model, or "
                'padding_side="left" to generate and with texts.'
            )


def uneven_pads(ids: TokenIds, pad_id: int, *, ends: bool = True) -> bool:
    """Whether the rows begin (or, with `ends`, end) with different numbers of `pad_id`: then some of these are padding.

    Equal numbers prove nothing: a BOS at the start of every row is not a pad, even if both have the same id.
    """
    other = ids != pad_id
    runs = [(other.cumsum(1) == 0).sum(1)] + ([(other.flip(1).cumsum(1) == 0).sum(1)] if ends else [])
    return any(bool((run != run[0]).any()) for run in runs)
