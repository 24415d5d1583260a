"""Generations that go on from a cache of the prompt. The generate of TransformerLens makes its own, empty one, and its
first pass computes the whole prompt; here that pass gets the cache, and computes the last token alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from odesteer_tl.backends.forward_calls import around_forward
from odesteer_tl.backends.model_info import device_of
from odesteer_tl.backends.transformer_lens.cache_names import renamed
from odesteer_tl.backends.transformer_lens.run import no_logits
from odesteer_tl.backends.transformers_caches import copied
from odesteer_tl.data.tokens import Tokenised

First = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""first(forward, args, kwargs): what the first pass does in place of forward(*args, **kwargs)."""


def bridge_cache(model: Any, batch: Tokenised, copies: int) -> Any:
    """`Backend.prompt_cache` of a bridge, in Hugging Face's class. The logits are not computed."""
    from transformers import DynamicCache

    adapter = getattr(model, "adapter", None)
    if getattr(model.cfg, "is_stateful", False) or not getattr(adapter, "supports_kv_cache", True):
        return None
    device, cache = device_of(model), DynamicCache(config=model.original_model.config)
    mask = {} if bool(batch.mask.all()) else {"attention_mask": batch.mask.long().to(device)}
    with torch.no_grad(), renamed(model), no_logits(model, model.cfg.n_layers - 1):
        model(batch.tokens.to(device), return_type="logits", use_cache=True, past_key_values=cache, **mask)
    return copied(cache, batch.tokens.shape[1], copies)


@contextmanager
def bridge_started(model: Any, cache: Any) -> Iterator[None]:
    """Inside the block the next pass of the bridge's generate goes on from `cache`, if there is one."""

    def first(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = args[0]
        mask = kwargs.get("attention_mask")
        kwargs = kwargs | {"past_key_values": cache}
        kwargs["attention_mask"] = torch.ones_like(tokens) if mask is None else mask
        return forward(tokens[:, -1:], *args[1:], **kwargs)

    with _first_pass(model, None if cache is None else first):
        yield


def hooked_cache(model: Any, batch: Tokenised, copies: int) -> Any:
    """`Backend.prompt_cache` of a HookedTransformer, in its own class."""
    from transformer_lens import TransformerLensKeyValueCache  # type: ignore[attr-defined] — only in 3.x

    if model.cfg.positional_embedding_type == "shortformer":  # adds positions to what it does not cache
        return None
    device = device_of(model)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(batch.tokens))
    with torch.no_grad():
        model(
            batch.tokens.to(device), return_type=None, past_kv_cache=cache,
            attention_mask=batch.mask.long().to(device),
        )  # fmt: skip
    for entry in cache.entries:
        entry.past_keys = entry.past_keys.repeat_interleave(copies, 0)
        entry.past_values = entry.past_values.repeat_interleave(copies, 0)
    return cache


@contextmanager
def hooked_started(model: Any, cache: Any) -> Iterator[None]:
    """Inside the block the next pass of HookedTransformer's generate goes on from `cache`, if there is one."""

    def first(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for own, filled in zip(kwargs["past_kv_cache"].entries, cache.entries, strict=True):
            own.past_keys, own.past_values = filled.past_keys, filled.past_values
        return forward(args[0][:, -1:], *args[1:], **kwargs)

    with _first_pass(model, None if cache is None else first):
        yield


@contextmanager
def _first_pass(model: Any, first: First | None) -> Iterator[None]:
    pending = [] if first is None else [first]

    def around(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return pending.pop()(forward, args, kwargs) if pending else forward(*args, **kwargs)

    if first is None:
        yield
        return
    with around_forward(model, around):
        yield
