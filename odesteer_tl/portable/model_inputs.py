"""What a call of a model, or of one of its blocks, says of a forward pass: its mask and positions.

Where a pass begins in its rows is told by several witnesses: the cache's length (`kv_caches`), the width of the mask,
the position ids. They are compared whenever they are there. What cannot be read, or disagrees, raises: a continuation
taken for a new prompt would steer the wrong tokens. This travels to remote servers, and works with plain values and
torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASKED = -1e3
"""Below what attention biases such as ALiBi reach, above every value that stands for "do not attend"."""


def named(args: Any, kwargs: Any, names: Any = ()) -> dict[str, Any]:
    """The arguments of a call by name; those by position beyond `names` by their number."""
    names = [*names, *(f"argument {number}" for number in range(len(names), len(args)))]
    return dict(zip(names, args, strict=False)) | kwargs


def compare(given: dict[str, Any], real: Tensor | None, width: int, offset: int, library: str) -> None:
    """Raises ValueError where position ids or a cache position begin elsewhere than after `offset` columns.

    `real` [batch, columns]: the real tokens among the columns so far, or among the last `width`; None where nothing is
    padded. Position ids count columns, or the row's real tokens; those of several axes (images) are not looked at.
    Numbers that lie on another device than the CPU are compared only at prompts, so that decoding never waits for them.
    """
    counted, ids = (_readable(given.get(name), width, offset) for name in ("cache_position", "position_ids"))
    if counted is not None and counted.ndim == 1 and int(counted[0]) != offset:
        raise unread(given, library, f"{offset} columns come before this pass, but cache_position is {int(counted[0])}")
    if ids is None:
        return
    rows = ids.cpu() if ids.ndim == 2 else ids.cpu().unsqueeze(0)
    columns = rows == (offset if width == 1 else torch.arange(offset, offset + width))
    if bool(columns.all()):
        return
    right = columns.all(1)
    if real is not None:
        real = real.bool().cpu()
        pads, order = ~real[:, -width:], real.long().cumsum(1)
        starts = (rows - order[:, -width:]).masked_fill(pads, -1)  # one less than the position of the first real token
        first = starts.max(1, keepdim=True).values
        right = right | (((starts == first) | pads).all(1) & (first[:, 0] < (0 if real.shape[1] > width else offset)))
    if not bool(right.all()):
        row = int(right.int().argmin())
        seen = rows[min(row, len(rows) - 1)]
        raise unread(
            given,
            library,
            f"{offset} columns come before this pass, but the position ids of row {row} go from {int(seen[0])} to "
            f"{int(seen[-1])}: leave position_ids out, or pass attention_mask= and the cache that they belong to",
        )


def _readable(value: Any, width: int, offset: int) -> Any:
    """Numbers of one per column that can be read without waiting for a device; None otherwise."""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or value.shape[-1] != width or value.is_meta:
        return None
    return value if offset == 0 or width > 1 or value.device.type == "cpu" else None


def declared(mask: Any, offset: int, width: int, library: str = "transformers") -> Tensor | None:
    """What a mask in any of Hugging Face's forms says of real tokens: one entry per key, or who attends to whom, the
    latter also for each kind of attention by name. Raises ValueError for another form."""
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

    A token does, in a full and in a sliding window, a pad does not: that is the diagonal where this pass's keys begin.
    They are the last ones, but for a static cache that is not yet full, which has room after.
    """
    first = min(cached, mask.shape[-1] - width)
    real = mask[:, 0].diagonal(first, -2, -1) if first >= 0 else mask[:, 0, 0, :0]
    return real > MASKED if real.is_floating_point() else real.bool()


def refuse_packed(given: dict[str, Any], library: str) -> None:
    """Raises ValueError for rows that are packed into one, as continuous batching does."""
    if any(name.startswith("cu_seq_lens") and value is not None for name, value in given.items()):
        raise ValueError(
            "This pass packs several prompts into one row (continuous batching, cu_seq_lens), and which token belongs "
            f"to which prompt is not followed there ({library}): use generate with a padded batch instead of "
            "generate_batch, or a padded batch instead of a packed one."
        )


def unread(given: dict[str, Any], library: str, what: str) -> ValueError:
    """What to say of a pass that is not understood: what was seen, by which library it was made, and what to do."""
    seen = ", ".join(f"{name}: {_shown(value)}" for name, value in given.items() if value is not None)
    return ValueError(
        f"Which token of its row each column of this pass is cannot be told: {what}. Made by {library}, with "
        f"{seen or 'no arguments'}. Steering counts tokens, and does not guess: pass use_cache=False, or a cache and "
        "an attention_mask that fit each other; where the library is newer than this package was tested with, install "
        "the version that constraints.txt names."
    )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
