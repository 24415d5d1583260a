"""Logits of rows that begin with the same tokens: keys and values of the beginning are computed once.

Answers to one question share all that stands before them, so that most of a teacher-forced pass is the same work again.
Models whose decoder takes a cache of Hugging Face are served; others run every row as a whole.
"""

import copy
import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.model_info import device_of, vocabulary_of
from odesteer_tl.backends.tokenize import common_prefix
from odesteer_tl.data.tokens import Tokenised

_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far logits may be from those of a pass without a cache, relative to their spread; 16-bit models: a tenth."""


class SharedPrefix:
    """The beginning that is cached. `hold` replaces it, and keeps what the old and the new one share."""

    def __init__(self, model: Any) -> None:
        self.root = backend_of(model).root(model)
        self.device = device_of(model)
        names = inspect.signature(type(self.root).forward).parameters
        self.argument = "cache" if "cache" in names else "past_key_values"
        self.tokens: list[int] = []
        self._cache: Any = None

    @torch.no_grad()
    def hold(self, tokens: list[int]) -> None:
        """Compute the beginning as the model is now: outside a steering block, unsteered."""
        if tokens == self.tokens:
            return
        kept = common_prefix(self.tokens, tokens[:-1])  # one token at least is run, as a pass needs one
        if self._cache is not None and kept:
            self._cache.crop(kept - self._cache.get_seq_length())  # negative: how many to remove
        else:
            self._cache, kept = None, 0
        given = {} if self._cache is None else {self.argument: self._cache}
        out = self.root(input_ids=torch.tensor([tokens[kept:]], device=self.device), use_cache=True, **given)
        self._cache, self.tokens = out.past_key_values, list(tokens)

    @torch.no_grad()
    def logits(self, rows: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos d_vocab"]:
        """Of rows that follow the beginning, on the CPU in float32. Shorter rows are filled at their ends, which no
        earlier token sees."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(rows))
        out = self.root(input_ids=rows.to(self.device), use_cache=True, **{self.argument: cache})
        return out.logits.float().cpu()


def shared_prefix(model: Any) -> SharedPrefix | None:
    """A `SharedPrefix`, or None for a model that it does not serve: one of nnsight, which steers traces alone, one
    without such a cache, with a sliding window, or whose logits after a cached beginning are not those of a whole pass.
    """
    if backend_of(model).library == "nnsight":
        return None
    count = min(vocabulary_of(model) or 50, 50)
    rows = [[1 + (7 * k + r) % (count - 1) for k in range(9)] for r in (0, 0, 3)]
    rows[1][6:] = [1 + k for k in range(3)]
    try:
        shared = SharedPrefix(model)
        shared.hold(rows[2][:7])
        shared.hold(rows[0][:7][:6])
        if any(getattr(layer, "is_sliding", False) for layer in shared._cache.layers):
            return None
        found = shared.logits(torch.tensor([row[6:] for row in rows[:2]], device="cpu"))
    except (TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError):
        return None
    tokens = torch.tensor(rows[:2], device="cpu")
    with torch.no_grad():
        whole = backend_of(model).logits(model, Tokenised(tokens, torch.ones_like(tokens, dtype=torch.bool)))[:, 6:]
    close = _CLOSE.get(next(model.parameters()).dtype, 0.1) * float(whole.std())
    return shared if float((found - whole).abs().max()) <= close else None
