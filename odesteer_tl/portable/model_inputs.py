"""The mask and the positions of a forward pass, read from the arguments of a model or of one of its blocks.

Several arguments say how many columns come before a pass: the length of the cache (`kv_caches`), the width of the mask,
the position ids. All that are given are compared. If one cannot be read, or two disagree, this raises: a continuation
mistaken for a new prompt would steer the wrong tokens. This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASKED = -1e3
"""Entries of a float mask below this mean "do not attend". Attention biases such as ALiBi stay above it."""


def named(args: Any, kwargs: Any, names: Any = ()) -> dict[str, Any]:
    """The arguments of a call by name; positional ones beyond `names` are called "argument 0", and so on."""
    names = [*names, *(f"argument {number}" for number in range(len(names), len(args)))]
    return dict(zip(names, args, strict=False)) | kwargs


def compare(arguments: dict[str, Any], real: Tensor | None, width: int, offset: int, library: str) -> None:
    """Raises ValueError if the position ids or the cache position do not begin after `offset` columns.

    `real` [batch, columns]: the real tokens among the columns so far, or among the last `width`; None if nothing is
    padded. Position ids count columns, or the row's real tokens; ids with several axes (images) are not checked. Ids on
    another device than the CPU are compared only at prompts, so that decoding never waits for the device.
    """
    cache_position, position_ids = (
        _readable(arguments.get(name), width, offset) for name in ("cache_position", "position_ids")
    )
    if cache_position is not None and cache_position.ndim == 1 and int(cache_position[0]) != offset:
        raise unread(
            arguments,
            library,
            f"{offset} columns come before this pass, but cache_position is {int(cache_position[0])}",
        )
    if position_ids is None:
        return
    rows = position_ids.cpu() if position_ids.ndim == 2 else position_ids.cpu().unsqueeze(0)
    columns = rows == (offset if width == 1 else torch.arange(offset, offset + width, device="cpu"))
    if bool(columns.all()):
        return
    correct = columns.all(1)
    if real is not None:
        real = real.bool().cpu()
        pads, order = ~real[:, -width:], real.long().cumsum(1)
        starts = (rows - order[:, -width:]).masked_fill(pads, -1)  # one less than the position of the first real token
        first = starts.max(1, keepdim=True).values
        correct = correct | (
            ((starts == first) | pads).all(1) & (first[:, 0] < (0 if real.shape[1] > width else offset))
        )
    if not bool(correct.all()):
        row = int(correct.int().argmin())
        seen = rows[min(row, len(rows) - 1)]
        raise unread(
            arguments,
            library,
            f"{offset} columns come before this pass, but the position ids of row {row} go from {int(seen[0])} to "
            f"{int(seen[-1])}: leave position_ids out, or pass attention_mask= and the cache that they belong to",
        )


def tree_positions(arguments: dict[str, Any], offset: int, width: int) -> Tensor | None:
    """The position ids [batch, width] of a pass over trees of tokens, on the CPU; None for any other pass.

    In a tree every token attends to all cached columns, to itself, to its parent, and to what that attends to, by a
    mask [batch, head, query, key]; its position is the number of those before it. Where nothing is cached there is one
    root.
    """
    mask, ids = arguments.get("attention_mask"), arguments.get("position_ids")
    if width == 1 or not (isinstance(mask, Tensor) and isinstance(ids, Tensor)) or mask.is_meta or ids.is_meta:
        return None
    if mask.ndim != 4 or mask.shape[-2:] != (width, offset + width) or ids.ndim != 2 or ids.shape[-1] != width:
        return None
    heads = _attends(mask).cpu()
    sees = heads[:, 0]
    own, positions = sees[..., offset:], ids.cpu().expand(len(sees), -1)
    if bool((own == torch.ones_like(own).tril()).all()):  # a row as any other
        return None
    closed = torch.equal(own.float() @ own.float() > 0, own)  # whoever sees a token sees what that one sees
    whole = bool(sees[..., : max(offset, 1)].all() and own.diagonal(0, -2, -1).all() and not own.triu(1).any())
    if not (whole and closed and bool((heads == heads[:, :1]).all()) and torch.equal(positions, sees.sum(-1) - 1)):
        return None
    parents = (own.tril(-1) * torch.arange(1, width + 1, device="cpu")).amax(-1)  # 0: a child of what is cached
    before = positions.gather(1, (parents - 1).clamp_min(0))
    return positions if bool(((parents == 0) | (before == positions - 1)).all()) else None


def _readable(value: Any, width: int, offset: int) -> Any:
    """`value` if it holds one number per column and can be read without waiting for a device, else None."""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or value.shape[-1] != width or value.is_meta:
        return None
    return value if offset == 0 or width > 1 or value.device.type == "cpu" else None


def declared(mask: Any, offset: int, width: int, library: str = "transformers") -> Tensor | None:
    """The real tokens by an attention mask in one of Hugging Face's forms: [batch, pos], [batch, head, query, key], or
    a dict of these by kind of attention. Raises ValueError for another form."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        what = f"a tensor of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            "Which tokens are real is read from an attention mask [batch, pos] or [batch, head, query, key], and this "
            f'model\'s is {what} ({library}): load it with attn_implementation="sdpa" or "eager".'
        )
    return mask[:, : offset + width] if mask.ndim == 2 else attending(mask, offset, width)


def attending(mask: Tensor, cached: int, width: int) -> Tensor:
    """Which present columns attend to themselves [batch or 1, width], by a mask [batch, head, query, key].

    A token attends to itself, with a full and with a sliding window; a pad does not. So this reads the diagonal that
    starts at the first key of this pass. The keys of this pass are the last ones, except in a static cache that is not
    full yet, which has empty columns after them.
    """
    first = min(cached, mask.shape[-1] - width)
    real = mask[:, 0].diagonal(first, -2, -1) if first >= 0 else mask[:, 0, 0, :0]
    return _attends(real)


def _attends(mask: Tensor) -> Tensor:
    return mask > MASKED if mask.is_floating_point() else mask.bool()


def refuse_packed(arguments: dict[str, Any], library: str) -> None:
    """Raises ValueError if several prompts are packed into one row, as in continuous batching."""
    if any(name.startswith("cu_seq_lens") and value is not None for name, value in arguments.items()):
        raise ValueError(
            "This pass packs several prompts into one row (continuous batching, cu_seq_lens), and steering cannot tell "
            f"which token belongs to which prompt ({library}): use generate with a padded batch instead of "
            "generate_batch, or a padded batch instead of a packed one."
        )


def unread(arguments: dict[str, Any], library: str, what: str) -> ValueError:
    """The error for a pass that cannot be read: what was seen, which library made the model, and what to do."""
    seen = ", ".join(f"{name}: {_shown(value)}" for name, value in arguments.items() if value is not None)
    return ValueError(
        f"The positions of the tokens of this pass cannot be read: {what}. The call is by {library}, with "
        f"{seen or 'no arguments'}. Steering counts tokens, and does not guess: pass use_cache=False, or a cache and "
        "an attention_mask that fit each other; if the library is newer than this package was tested with, install "
        "the version that constraints.txt names."
    )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
