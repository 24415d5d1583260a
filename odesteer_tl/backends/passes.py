"""What a model is being asked: each forward pass, as soon as it begins, in the words of `positions`.

A TransformerBridge or an nnsight model is watched where its Hugging Face model is called; that sees tokens, mask and
cache however it was reached. HookedTransformer.generate calls no module but the embedding and the blocks, so it is
watched there.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.backends.carrying import Carrier
from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.backends.nnsight.blocks import attending
from odesteer_tl.following import Pass
from odesteer_tl.shapes import TokenKeys


@contextmanager
def watching(model: Any, carrier: Carrier) -> Iterator[None]:
    """Tells `carrier` of every forward pass before any of its layers runs, and where that can be seen of its end."""
    kind = kind_of(model)
    if kind == "HookedTransformer":
        handles = _watch_hooked(model, sorted({site.layer for site in carrier.sites}), carrier.begin)
    else:
        handles = _watch_called(model.original_model if kind == "TransformerBridge" else model._module, carrier)
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _watch_called(watched: Any, carrier: Carrier) -> list[Any]:
    names = [name for name in inspect.signature(type(watched).forward).parameters if name != "self"]
    open_passes: list[bool] = []

    def called(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not watched:  # a copy, made while the hook was on
            return
        given = dict(zip(names, args, strict=False)) | kwargs
        tokens = given.get("input_ids", args[0] if args else None)
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor):
            return
        cache = given.get("past_key_values")
        offset = 0 if cache is None else int(cache.get_seq_length())
        mask = _declared(given.get("attention_mask"), offset, tokens.shape[1])
        caching = cache is not None or given.get("use_cache") is True
        carrier.within(Pass(tokens.shape[0], tokens.shape[1], offset, tokens, mask, caching))
        open_passes.append(True)

    def ended(module: Any, args: Any, output: Any) -> None:
        if module is watched and open_passes:  # not of a call that `within` refused
            open_passes.pop()
            carrier.end()

    before = watched.register_forward_pre_hook(called, with_kwargs=True)
    return [before, watched.register_forward_hook(ended, always_call=True)]


def _declared(mask: Any, offset: int, width: int) -> Tensor | None:
    """What a mask in any of Hugging Face's forms says of real tokens: one entry per key, or who attends to whom, the
    latter also for each kind of attention by name."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    return mask if mask.ndim == 2 else attending(mask, offset, width)


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
