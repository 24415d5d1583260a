"""Passes over rows of given texts, at several strengths: after their prompts, which are computed once, or over whole
texts where that cannot be."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import PerRow, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.kept_prompts import KeptPrompts, PromptedRows, kept_prompts, size_of
from odesteer_tl.backends.owners import steered_around
from odesteer_tl.backends.tokenize import trimmed
from odesteer_tl.data.tokens import Tokenised

MOST_KEPT = 2**30
"""Bytes of keys and values of prompts that are kept for the next strengths."""


@dataclass(frozen=True, eq=False)
class TextRows:
    """Some rows of the texts. `batch`: their tokens, padded on the left alone or on both sides; `named`: those whose
    logits are asked for."""

    model: Any
    batch: Tokenised
    named: TokenMask

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """The rows and columns of `logits` at which the named tokens stand, row by row."""
        rows, columns = self.named.nonzero(as_tuple=True)
        return rows, columns

    def logits(self, copies: int = 1) -> Float[Tensor, "rows pos d_vocab"]:
        """Of all rows `copies` times, one copy after the other, as the model is now."""
        batch = Tokenised(*(part.repeat(copies, 1) for part in self.batch))
        return backend_of(self.model).logits(self.model, batch)


@dataclass(frozen=True, eq=False)
class PromptedTextRows(TextRows):
    """Rows whose prompts are kept: `logits` are of what comes after them."""

    parts: PromptedRows
    kept: KeptPrompts
    held: Any

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        rows, columns = self.parts.of_rest(self.named, self.batch.mask).nonzero(as_tuple=True)
        return rows, columns

    def logits(self, copies: int = 1) -> Float[Tensor, "rows pos d_vocab"]:
        return self.kept.logits(self.parts, self.held, torch.arange(len(self.named), device="cpu").repeat(copies))


@dataclass(eq=False)
class TextPasses:
    """What runs the `texts`. `named`: the tokens that are steered, and whose logits are asked for."""

    model: Any
    texts: Tokenised
    prompt_lengths: PerRow
    named: TokenMask
    _held: dict[tuple[int, ...], tuple[PromptedRows, Any] | None] = field(default_factory=dict)

    def of(self, rows: Tensor) -> TextRows:
        """Those rows, without common padding. What is kept of their prompts is as the model was when they were asked
        for first."""
        batch = trimmed(Tokenised(self.texts.tokens[rows], self.texts.mask[rows]))
        whole = TextRows(self.model, batch, self.named[rows][:, -batch.mask.shape[1] :])
        if not self._spares_prompts or steered_around(self.model) or self._kept is None:
            return whole
        key = tuple(rows.tolist())
        if key not in self._held:
            self._held[key] = self._hold(batch, self.prompt_lengths[rows], self._kept)
        found = self._held[key]
        if found is None:
            return whole
        return PromptedTextRows(self.model, batch, whole.named, found[0], self._kept, found[1])

    def _hold(self, batch: Tokenised, prompt_lengths: PerRow, kept: KeptPrompts) -> tuple[PromptedRows, Any] | None:
        """The parts of the rows and what is kept of them; None where that is nothing, too much, or not right."""
        if int(prompt_lengths.max()) < 2 or bool((batch.mask.sum(1) < prompt_lengths).any()):
            return None
        parts = PromptedRows.of(batch, prompt_lengths)
        held = kept.hold(parts.start)
        before = sum(size_of(other[1]) for other in self._held.values() if other is not None)
        fits = before + size_of(held) <= MOST_KEPT
        return (parts, held) if fits and kept.is_right(self.model, batch, parts, held) else None

    @cached_property
    def _spares_prompts(self) -> bool:
        """Whether no token before the last one of its prompt is named."""
        index = self.texts.mask.long().cumsum(1) - 1
        return not bool((self.named & (index < self.prompt_lengths.unsqueeze(1) - 1)).any())

    @cached_property
    def _kept(self) -> KeptPrompts | None:
        return kept_prompts(self.model)
