"""Teacher-forced passes that compute the blocks below the first hook once per text, for plain models of transformers.

Nothing below the steered block changes with the strength, so that a search over strengths at block 22 of 30 repeats 23
blocks for nothing. Only for benchmarks: the forward of every block is replaced while it lasts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def lower_blocks_kept(model: nn.Module, blocks: nn.ModuleList, most_rows: int = 2000) -> Iterator[None]:
    """In passes without a cache, rows that were seen before begin at the lowest block that has a forward hook. At most
    `most_rows` rows are kept a block, in the order in which they come."""
    kept: dict[int, dict[bytes, Tensor]] = {}
    now: dict[str, Any] = {"from": None}

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hooked = next((number for number, block in enumerate(blocks) if block._forward_hooks), None)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if hooked is None or ids is None or kwargs.get("past_key_values") is not None or kwargs.get("use_cache", True):
            now["from"] = None
            return
        mask = kwargs.get("attention_mask")
        both = ids if mask is None else torch.stack([ids, mask.to(ids)], dim=1)
        now["keys"] = [row.numpy().tobytes() + bytes([mask is None]) for row in both.cpu()]
        now["from"], of_block = hooked, kept.setdefault(hooked, {})
        now["known"] = all(key in of_block for key in now["keys"])

    def forward_of(number: int, plain: Any) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            start = now["from"]
            if start is None or number > start:
                return plain(hidden, *args, **kwargs)
            if not now["known"]:
                out = plain(hidden, *args, **kwargs)
                if number == start and len(kept[start]) + len(out) <= most_rows:
                    kept[start] |= dict(zip(now["keys"], out.detach().clone(), strict=True))
                return out
            return hidden if number < start else torch.stack([kept[start][key] for key in now["keys"]])

        return forward

    watch = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        for number, block in enumerate(blocks):
            block.forward = forward_of(number, block.forward)  # hooks of the block act on what it returns
        yield
    finally:
        watch.remove()
        for block in blocks:
            del block.forward
