"""Logits of texts whose prompts are computed once: keys and values of a prompt, but for its last token, are kept, and a
further pass computes the rest of each text.

Where texts are run at many strengths, most of their tokens are often prompt, which no strength changes. Models of
Hugging Face and bridges of them are served; others run whole texts.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odesteer_tl._shapes import PerRow, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.model_info import device_of, vocabulary_of
from odesteer_tl.backends.shared_prefix import FAILURES, are_close, depends_on_pass
from odesteer_tl.backends.tokenize import left_padded
from odesteer_tl.backends.transformers_caches import cache_argument, cache_of, is_copied_by_rows
from odesteer_tl.data.tokens import Tokenised


@dataclass(frozen=True, eq=False)
class PromptedRows:
    """Texts in two parts, both padded on the left: `start`, of each prompt all but its last token, and `rest`."""

    start: Tokenised
    rest: Tokenised

    @classmethod
    def of(cls, texts: Tokenised, prompt_lengths: PerRow) -> "PromptedRows":
        """The parts of texts, none shorter than its prompt, of which one has a prompt of two tokens or more."""
        rows = [row[mask].tolist() for row, mask in zip(*texts, strict=True)]
        ends = (prompt_lengths - 1).clamp_min(0).tolist()
        start = left_padded([row[:end] for row, end in zip(rows, ends, strict=True)], filler=0)
        return cls(start, left_padded([row[end:] for row, end in zip(rows, ends, strict=True)], filler=0))

    def of_rest(self, chosen: TokenMask, texts: TokenMask) -> Bool[Tensor, "batch rest"]:
        """Tokens of the texts, of which none is in a start, as columns of the rest."""
        found = torch.zeros_like(self.rest.mask)
        for new, mask, own, real in zip(found, self.rest.mask, chosen, texts, strict=True):
            new[mask] = own[real][int(real.sum()) - int(mask.sum()) :]
        return found


class KeptPrompts:
    """Runs `PromptedRows` of one model."""

    def __init__(self, model: Any) -> None:
        self.root = backend_of(model).root(model)
        self.device = device_of(model)
        self.argument = cache_argument(self.root)
        names = inspect.signature(type(self.root).forward).parameters
        self.fewest = {"logits_to_keep": 1} if "logits_to_keep" in names else {}

    @torch.no_grad()
    def hold(self, start: Tokenised) -> Any:
        """The keys and values of the starts, as the model is now: outside a steering block, unsteered."""
        mask = start.mask.clone()
        mask[:, -1] = True  # for attention that has no number for pads alone; in `logits` it is a pad again
        return cache_of(self.root(**self._inputs(start.tokens, mask), **self.fewest, use_cache=True))

    @torch.no_grad()
    def logits(self, rows: PromptedRows, held: Any, chosen: PerRow) -> Float[Tensor, "batch pos d_vocab"]:
        """Of each token of the rest of the `chosen` rows, on the CPU in float32."""
        cache, mask = copy.deepcopy(held), torch.cat([rows.start.mask, rows.rest.mask], 1)
        if chosen.tolist() != list(range(len(mask))):
            cache.batch_select_indices(chosen.to(self.device))
        given = self._inputs(rows.rest.tokens[chosen], mask[chosen])
        return self.root(**given, **{self.argument: cache}, use_cache=True).logits.float().cpu()

    def is_right(self, model: Any, texts: Tokenised, rows: PromptedRows, held: Any) -> bool:
        """Whether the longest of the texts with a start gets the logits that it has as a whole: hooks of the user's own
        may count columns."""
        row = int((texts.mask.sum(1) * rows.start.mask.any(1)).argmax())
        alone = left_padded([texts.tokens[row, texts.mask[row]].tolist()], filler=0)
        with torch.no_grad():
            whole = backend_of(model).logits(model, alone)[0]
        own = self.logits(rows, held, torch.tensor([row], device="cpu"))[0, rows.rest.mask[row]]
        return are_close(model, own, whole[len(whole) - len(own) :])

    def _inputs(self, tokens: Tensor, mask: TokenMask) -> dict[str, Tensor]:
        places = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        given = {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": places}
        return {name: value.to(self.device) for name, value in given.items()}


def kept_prompts(model: Any) -> KeptPrompts | None:
    """A `KeptPrompts`, or None for a model that it does not serve: one of nnsight, which steers traces alone, one that
    takes no such cache or mask, with a sliding window or states, or that depends on the pass; and any whose logits are
    not those of whole texts."""
    if backend_of(model).library == "nnsight" or depends_on_pass(model):
        return None
    count, lengths = min(vocabulary_of(model) or 50, 50), torch.tensor([6, 3, 1], device="cpu")
    texts = left_padded([[1 + (7 * k) % (count - 1) for k in range(length)] for length in (9, 5, 4)], filler=0)
    after = texts.mask & (texts.mask.long().cumsum(1) >= lengths.unsqueeze(1))
    rows, chosen = PromptedRows.of(texts, lengths), torch.tensor([0, 2, 1, 1], device="cpu")
    try:
        with torch.no_grad():
            whole = backend_of(model).logits(model, texts)
        kept = KeptPrompts(model)
        held = kept.hold(rows.start)
        if not is_copied_by_rows(held):
            return None
        found = kept.logits(rows, held, chosen)
    except FAILURES:
        return None
    pairs = [(found[k][rows.rest.mask[row]], whole[row][after[row]]) for k, row in enumerate(chosen.tolist())]
    return kept if all(are_close(model, one, other) for one, other in pairs) else None


def size_of(held: Any) -> int:
    """Bytes of the keys and values that are kept."""
    parts = [part for layer in held.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in parts)
