"""What a model is being asked: each forward pass, as soon as it begins, in the words of `positions`.

A TransformerBridge or an nnsight model is watched where its Hugging Face model is called; that sees tokens, mask and
cache however it was reached. HookedTransformer.generate calls no module but the embedding and the blocks, so it is
watched there.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.positions import Pass
from odesteer_tl.shapes import TokenKeys


@contextmanager
def watching(model: Any, layers: Iterable[int], begin: Callable[[Pass], None]) -> Iterator[None]:
    """Calls `begin` once per forward pass, before any of `layers` runs."""
    kind = kind_of(model)
    if kind == "HookedTransformer":
        handles = _watch_hooked(model, sorted(set(layers)), begin)
    else:
        handles = [_watch_called(model.original_model if kind == "TransformerBridge" else model._module, begin)]
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _watch_called(module: Any, begin: Callable[[Pass], None]) -> Any:
    def called(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            return
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        offset = 0 if cache is None else int(cache.get_seq_length())
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        caching = cache is not None or kwargs.get("use_cache") is True
        begin(Pass(tokens.shape[0], tokens.shape[1], offset, tokens, mask, caching))

    return module.register_forward_pre_hook(called, with_kwargs=True)


def _watch_hooked(model: Any, layers: list[int], begin: Callable[[Pass], None]) -> list[Any]:
    embedded: TokenKeys | None = None
    earlier: TokenKeys | None = None
    last, shape = -1, (0, 0)

    def embeds(module: Any, args: tuple[Any, ...]) -> None:
        nonlocal embedded
        embedded = args[0]

    def tokens_of(residual: Tensor, whole: bool, layer: int) -> TokenKeys | None:
        """The ids of a pass. With the cache off, `generate` embeds only the newest: they follow the earlier ones. Where
        the model was called with embeddings, what enters its first block tells tokens apart as well."""
        batch, width = residual.shape[:2]
        if embedded is not None and embedded.shape == (batch, width):
            return embedded
        if embedded is not None and whole and earlier is not None and earlier.shape == (batch, width - 1):
            return torch.cat([earlier, embedded], dim=1) if embedded.shape == (batch, 1) else None
        return residual if layer == 0 else None

    def runs(layer: int) -> Callable[..., None]:
        def block(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal embedded, earlier, last, shape
            residual = args[0]
            if layer > last and residual.shape[:2] == shape:  # a block further on in the pass that began before
                last = layer
                return
            last, shape = layer, residual.shape[:2]
            entry, mask = kwargs.get("past_kv_cache_entry"), kwargs.get("attention_mask")
            offset = 0 if entry is None else entry.past_keys.shape[1]
            tokens = tokens_of(residual, offset == 0, layer)
            embedded, earlier = None, tokens
            begin(Pass(shape[0], shape[1], offset, tokens, mask, entry is not None))

        return block

    handles = [model.embed.register_forward_pre_hook(embeds)]
    for layer in sorted({0, *layers}):
        handles.append(model.blocks[layer].register_forward_pre_hook(runs(layer), with_kwargs=True))
    return handles
