"""Logits of rows that begin alike, each token computed once: keys and values of what all begin with are kept, and the
rest is one pass over the tree of their tokens.

Answers to one question share all that stands before them, so that most of a teacher-forced pass is the same work again.
Models of Hugging Face and bridges of them are served whose attention takes a mask [batch, head, query, key]; others run
every row as a whole.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.model_info import device_of, vocabulary_of
from odesteer_tl.backends.token_tree import TokenTree
from odesteer_tl.backends.transformers_caches import cache_argument, cache_of
from odesteer_tl.data.tokens import Tokenised

FAILURES = (TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError, LookupError)
"""Of models that take no such cache or mask."""

_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far logits may be from those of a pass without a cache, relative to their spread; 16-bit models: a tenth."""


class SharedPrefix:
    """The beginning that is kept. `hold` replaces it."""

    def __init__(self, model: Any) -> None:
        self.root = backend_of(model).root(model)
        self.device, self.dtype = device_of(model), next(model.parameters()).dtype
        self.argument = cache_argument(self.root)
        self.tokens: list[int] = []
        self._cache: Any = None

    @torch.no_grad()
    def hold(self, tokens: list[int]) -> None:
        """Compute the beginning as the model is now: outside a steering block, unsteered. No tokens: keep nothing."""
        ids = torch.tensor([tokens], device=self.device)
        self._cache = cache_of(self.root(input_ids=ids, use_cache=True)) if tokens else None
        self.tokens = list(tokens)

    @torch.no_grad()
    def logits(self, tree: TokenTree) -> Float[Tensor, "node d_vocab"]:
        """Of each node, whose root follows the beginning; on the CPU in float32."""
        held = len(self.tokens)
        seen = torch.nn.functional.pad(tree.sees, (held, 0), value=True)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device="cpu").masked_fill(~seen, torch.finfo(self.dtype).min)
        given = {
            "input_ids": tree.tokens.unsqueeze(0), "attention_mask": mask[None, None],
            "position_ids": (held + tree.depth).unsqueeze(0),
        }  # fmt: skip
        past = {} if self._cache is None else {"use_cache": True, self.argument: copy.deepcopy(self._cache)}
        out = self.root(**{name: value.to(self.device) for name, value in given.items()}, **past)
        return out.logits[0].float().cpu()


def shared_prefix(model: Any) -> SharedPrefix | None:
    """A `SharedPrefix`, or None for a model that it does not serve: one of nnsight, which steers traces alone, one that
    takes no such cache or mask, with a sliding window, that depends on the pass, or whose logits are not those of a
    whole pass."""
    if backend_of(model).library == "nnsight" or depends_on_pass(model):
        return None
    count = min(vocabulary_of(model) or 50, 50)
    row = [1 + (7 * k) % (count - 1) for k in range(9)]
    rows = [row, [*row[:6], *(1 + k for k in range(3))], row[:8]]
    tokens = torch.tensor(rows[:2], device="cpu")
    with torch.no_grad():
        whole = backend_of(model).logits(model, Tokenised(tokens, torch.ones_like(tokens, dtype=torch.bool)))
    try:
        shared = SharedPrefix(model)
        for held in (4, 0):
            shared.hold(row[:held])
            if held and any(getattr(layer, "is_sliding", False) for layer in shared._cache.layers):
                return None
            tree = TokenTree.of([each[held:] for each in rows])
            found = shared.logits(tree)
            own = torch.stack([found[path] for path in tree.paths[:2]])
            if not are_close(model, own, whole[:, held:]):
                return None
    except FAILURES:
        return None
    return shared


def depends_on_pass(model: Any) -> bool:
    """Whether a token's numbers depend on the columns or on the length of its pass, beyond what a look at a few tokens
    shows: GPT-Neo, whose causal mask and windows count columns, and rotary embeddings of other factors in long
    texts."""
    config: Any = getattr(backend_of(model).root(model), "config", None)
    given = config.to_dict() if hasattr(config, "to_dict") else {}
    return "attention_layers" in given or not {"longrope", "dynamic"}.isdisjoint(_rope_types(given))


def _rope_types(given: dict[Any, Any]) -> set[Any]:
    """The types of rotary embeddings that a configuration names, of all layers and parts."""
    nested = [_rope_types(value) for value in given.values() if isinstance(value, dict)]
    return {given.get("rope_type")}.union(*nested)


def are_close(model: Any, found: Tensor, whole: Tensor) -> bool:
    """Whether logits are those of whole texts, up to rounding."""
    close = _CLOSE.get(next(model.parameters()).dtype, 0.1) * float(whole.std())
    return float((found - whole).abs().max()) <= close
