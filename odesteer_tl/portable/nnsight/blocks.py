"""The decoder blocks of an nnsight model: where they are, and which tokens of a pass are real.

This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.decoder_blocks import is_attention as is_attention
from odesteer_tl.portable.decoder_blocks import is_list, path_of_blocks, unknown_blocks
from odesteer_tl.portable.decoder_blocks import output_with as output_with
from odesteer_tl.portable.decoder_blocks import value_in as value_in
from odesteer_tl.portable.kv_caches import cache_in, length_at
from odesteer_tl.portable.model_inputs import attending, compare, named, refuse_packed


def blocks_of(model: Any, blocks: Any = None) -> Any:
    """The list of decoder blocks, as nnsight wraps it (see `decoder_blocks.path_of_blocks`).

    `blocks` names it: a dotted path, or the list itself. Nothing runs, so this works within a trace and on a model
    without weights. Raises ValueError if no list, or more than one, fits.
    """
    if blocks is None:
        return model.get(path_of_blocks(model._module, getattr(model, "config", None)))
    block_list = blocks
    if isinstance(blocks, str):
        try:
            block_list = model.get(blocks)
        except AttributeError:
            kind = type(model._module).__name__
            raise unknown_blocks(model._module, f"blocks={blocks!r} leads nowhere in a {kind}") from None
    if not is_list(getattr(block_list, "_module", None)):
        what = blocks if isinstance(blocks, str) else type(blocks).__name__
        raise unknown_blocks(model._module, f"blocks={what} is no list of modules")
    return block_list


def real_tokens(
    inputs: Any, batch: int, width: int, layer: int, state: int | None = None, library: str = "transformers"
) -> tuple[Tensor | None, int]:
    """(real, cached): which columns of a pass are real tokens, and how many columns were cached before it.

    `inputs` is the block's (args, kwargs); read it before the block's output, because attention appends to the cache.
    `real` is a bool mask [batch, width]; None if the model attends without a mask, which it does only if no column is
    padded. If all are True, it may also be that nobody declared the pads. `state`: the number of columns seen by the
    cache of a state-space model, if known. Raises ValueError for a mask or a cache that cannot be read, and for
    position ids that disagree with the cache.
    """
    args, kwargs = inputs
    arguments = named(args, kwargs, ("hidden_states",))
    positions = arguments.get("position_ids")
    if isinstance(positions, Tensor) and positions.shape[-1] > width:
        raise ValueError(
            f"Block {layer} is given only the last {width} of {positions.shape[-1]} tokens, as happens where blocks "
            "share the keys of an earlier one: pass output_hidden_states=True to generate, or choose an earlier layer."
        )
    refuse_packed(arguments, library)
    cache = cache_in(arguments, library)
    cached = 0 if cache is None else length_at(cache, layer, width, state, library)
    mask = _mask(args, kwargs)
    real = None
    if mask is not None:
        # Flash attention has one entry per key; the present keys come last.
        real = mask[:, -width:] != 0 if mask.ndim == 2 else attending(mask, cached, width)
        if real.shape[0] not in (1, batch) or real.shape[1] != width:
            raise ValueError(
                f"The attention mask {tuple(mask.shape)} does not fit {batch} rows of {width} columns after {cached}: "
                "pass attention_mask= with one entry per token, [batch, pos]."
            )
        real = real.expand(batch, width)
    compare(arguments, real, width, cached, library)
    return real, cached


def _mask(args: Any, kwargs: Any) -> Tensor | None:
    """The attention mask. GPT-2 passes it by position: among the other arguments, ids are integers and activations have
    three axes."""
    if "attention_mask" in kwargs:
        mask = kwargs["attention_mask"]
    else:
        tensors = [a for a in args[1:] if isinstance(a, Tensor)]
        mask = next((a for a in tensors if a.ndim == 4 or (a.ndim == 2 and a.dtype != torch.long)), None)
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
        what = f"a tensor of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            "Which tokens are real is read from an attention mask [batch, pos] or [batch, head, query, key], and this "
            f'model\'s is {what}: load it with attn_implementation="sdpa" or "eager".'
        )
    return mask
