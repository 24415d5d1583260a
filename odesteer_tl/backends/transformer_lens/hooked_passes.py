"""Reads the forward passes of a HookedTransformer, whose generate calls only the embedding and the blocks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import TokenKeys
from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.owners import Owner
from odesteer_tl.backends.torch_hooks import removal
from odesteer_tl.backends.upstream_names import made_by, need_parameter
from odesteer_tl.portable.token_tracks import Pass


@contextmanager
def hooked_watched(model: Any, runner: EditRunner, owner: Owner) -> Iterator[None]:
    """`Backend.watched` for a HookedTransformer. Raises ValueError if its blocks do not take the cache and the mask."""
    with ExitStack() as stack:
        for remove in _hooks(model, sorted({site.layer for site in runner.sites}), runner, owner):
            stack.callback(remove)
        yield


def _hooks(model: Any, layers: list[int], runner: EditRunner, owner: Owner) -> list[Callable[[], None]]:
    embedded: TokenKeys | None = None
    earlier: TokenKeys | None = None
    last, shape = -1, (0, 0)
    for name in ("past_kv_cache_entry", "attention_mask"):
        need_parameter(model.blocks[0], name, "which shows cached tokens and pads")

    def embeds(module: Any, args: tuple[Any, ...]) -> None:
        nonlocal embedded
        owner.admit()
        embedded = args[0]

    def tokens_of(residual: Tensor, uncached: bool, layer: int) -> TokenKeys | None:
        """The ids of a pass. With the cache off, `generate` embeds only the newest ids, which are appended to the
        earlier ones. If the model was called with embeddings, the input of its first block stands for the ids."""
        batch, width = residual.shape[:2]
        if embedded is not None and embedded.shape == (batch, width):
            return embedded
        if embedded is not None and uncached and earlier is not None and earlier.shape == (batch, width - 1):
            return torch.cat([earlier, embedded], dim=1) if embedded.shape == (batch, 1) else None
        return residual if layer == 0 else None

    def runs(layer: int) -> Callable[..., None]:
        def block(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal embedded, earlier, last, shape
            owner.admit()
            residual = args[0]
            if layer > last and residual.shape[:2] == shape:  # a later block of the running pass
                last = layer
                return
            last, shape = layer, residual.shape[:2]
            entry, mask = kwargs.get("past_kv_cache_entry"), kwargs.get("attention_mask")
            offset = 0 if entry is None else entry.past_keys.shape[1]
            tokens = tokens_of(residual, offset == 0, layer)
            embedded, earlier = None, tokens
            runner.begin(Pass(shape[0], shape[1], offset, tokens, mask, entry is not None))

        return block

    def returned(layer: int) -> Callable[..., None]:
        return lambda module, args, output: runner.check_complete(layer, made_by(model))

    embeds.__dict__["steers"] = True  # for `stream_weights`, which folds no weights meanwhile
    hooks = [(model.embed, model.embed.register_forward_pre_hook(embeds))]
    for layer in sorted({0, *layers}):
        block = model.blocks[layer]
        hooks.append((block, block.register_forward_pre_hook(runs(layer), with_kwargs=True)))
        hooks.append((block, block.register_forward_hook(returned(layer))))
    return [removal(*hook) for hook in hooks]
