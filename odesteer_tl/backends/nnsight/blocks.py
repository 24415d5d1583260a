"""The decoder blocks of an nnsight model: where they are, the residual stream in what they return, and which tokens of
a pass are real.

This file also runs on servers that have torch and not this package: nothing here needs more than that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.caches import cache_in, length_at
from odesteer_tl.model_inputs import attending, compare, named, refuse_packed

OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")


def blocks_of(model: Any, blocks: Any = None) -> Any:
    """The list of decoder blocks, as nnsight holds it: the one as long as the configuration says whose items attend.

    `blocks` says which it is: a dotted path, or the list itself. Nothing runs, so that it works within a trace and on a
    model without weights. Raises ValueError where no list, or more than one, fits.
    """
    if blocks is not None:
        return _told(model, blocks)
    depth = _depth(model)
    found = [
        path
        for path, modules in _lists(model)
        if len(modules) == depth
        and any(_attends(module) for module in modules)
        and not any(word in path for word in OTHER_TOWERS)
    ]
    if len(found) != 1:
        many = f"{len(found)} lists of decoder blocks ({', '.join(found)})" if found else "no list of decoder blocks"
        said = "whose configuration does not say how many it has" if depth is None else f"where {depth} are expected"
        raise _unknown(model, f"found {many} in a {_kind(model)}, {said}")
    return model.get(found[0])


def value_in(output: Any) -> Tensor:
    """The residual stream [batch, pos, d_model] in what a block returned: the tensor, or a tuple's first.

    Raises ValueError for anything else.
    """
    value = output[0] if isinstance(output, (tuple, list)) and len(output) > 0 else output
    if not isinstance(value, Tensor) or value.ndim != 3:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            "A decoder block returns [batch, pos, d_model], alone or first in a tuple; this one returned "
            f"{what}. Pass blocks= with the list of decoder blocks, if that is another."
        )
    return value


def output_with(output: Any, value: Tensor) -> Any:
    """What the block returned, with `value` in place of `value_in(output)`."""
    return type(output)([value, *output[1:]]) if isinstance(output, (tuple, list)) else value


def real_tokens(
    inputs: Any, batch: int, width: int, layer: int, state: int | None = None, library: str = "transformers"
) -> tuple[Tensor | None, int]:
    """Which of a pass's columns are real tokens, and how many columns were cached before it.

    `inputs` is the block's (args, kwargs), and must be read before its output: attention appends to the cache. Real: a
    bool mask [batch, width], pads False; None where the model attends without a mask, which it does only if no column
    is padded. All True also says no more than that nobody declared a pad. `state`: the columns that a state-space
    model's cache stands for, where they are known. Raises ValueError for a mask or a cache that cannot be read, and for
    position ids that tell another story.
    """
    args, kwargs = inputs
    given = named(args, kwargs, ("hidden_states",))
    positions = given.get("position_ids")
    if isinstance(positions, Tensor) and positions.shape[-1] > width:
        raise ValueError(
            f"Block {layer} is given the last {width} of {positions.shape[-1]} tokens, as blocks are that share an "
            "earlier one's keys: pass output_hidden_states=True to generate, or choose an earlier layer."
        )
    refuse_packed(given, library)
    cache = cache_in(given, library)
    cached = 0 if cache is None else length_at(cache, layer, width, state, library)
    mask = _mask(args, kwargs)
    real = None
    if mask is not None:
        # Flash attention has one entry per key, of which the present ones come last.
        real = mask[:, -width:] != 0 if mask.ndim == 2 else attending(mask, cached, width)
        if real.shape[0] not in (1, batch) or real.shape[1] != width:
            raise ValueError(
                f"The attention mask {tuple(mask.shape)} does not fit {batch} rows of {width} columns after {cached}: "
                "pass attention_mask= with one entry per token, [batch, pos]."
            )
        real = real.expand(batch, width)
    compare(given, real, width, cached, library)
    return real, cached


def is_attention(name: str) -> bool:
    """Whether a part of a block is named as attention is, in one architecture or another."""
    return "attn" in name or "attention" in name


def _mask(args: Any, kwargs: Any) -> Tensor | None:
    """The attention mask. GPT-2's comes by position, where ids are integers and activations have three axes."""
    if "attention_mask" in kwargs:
        mask = kwargs["attention_mask"]
    else:
        tensors = [a for a in args[1:] if isinstance(a, Tensor)]
        mask = next((a for a in tensors if a.ndim == 4 or (a.ndim == 2 and a.dtype != torch.long)), None)
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
        what = f"a tensor of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"Which tokens are real is read from an attention mask [batch, pos] or [batch, head, query, key], and this "
            f'model\'s is {what}: load it with attn_implementation="sdpa" or "eager".'
        )
    return mask


def _told(model: Any, blocks: Any) -> Any:
    if isinstance(blocks, str):
        try:
            found = model.get(blocks)
        except AttributeError:
            raise _unknown(model, f"blocks={blocks!r} leads nowhere in a {_kind(model)}") from None
    else:
        found = blocks
    if not isinstance(getattr(found, "_module", None), (torch.nn.ModuleList, torch.nn.Sequential)):
        raise _unknown(model, f"blocks={blocks if isinstance(blocks, str) else type(blocks).__name__} is no list")
    return found


def _unknown(model: Any, what: str) -> ValueError:
    lists = ", ".join(f"{path} ({len(modules)})" for path, modules in _lists(model)) or "none"
    return ValueError(
        f'No decoder blocks: {what}. Pass their list: blocks="transformer.h" or blocks=model.transformer.h. The module '
        f"lists of this model, with their lengths: {lists}."
    )


def _lists(model: Any) -> list[tuple[str, Any]]:
    return [(path, module) for path, module in model._module.named_modules() if isinstance(module, torch.nn.ModuleList)]


def _depth(model: Any) -> int | None:
    """How many blocks the language model has; None where that is not said, or said of an encoder and a decoder."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return None
    return getattr(getattr(config, "text_config", None) or config, "num_hidden_layers", None)


def _attends(block: Any) -> bool:
    """Whether it has attention as a direct part, under whichever name; experts, adapters and norms have not."""
    return any(is_attention(name) for name, _ in block.named_children())


def _kind(model: Any) -> str:
    return type(model._module).__name__
