"""What steered logits should be: those of the plain Hugging Face model, one unpadded row at a time, without a cache,
under a torch hook on a decoder layer that steers positions written out one by one.

No code of the backends or of `positions` is used.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.activations import ContrastiveActivations
from odesteer_tl.parity.models import Family, hugging_face
from odesteer_tl.shapes import TokenIds

LAYER, STEPS = 1, 5
PROMPTS = {"single": [[1, 5, 6, 7]], "batch": [[1, 5, 6, 7, 9], [1], [1, 8, 4]]}


def block(family: Family) -> Any:
    """The decoder layer that is steered."""
    hf = hugging_face(family)
    return (hf.model.layers if family == "llama" else hf.transformer.h)[LAYER]


@torch.no_grad()
def logits(family: Family, row: list[int], steer: Any, positions: Sequence[int]) -> Tensor:
    """Logits [pos, d_vocab] of one row, with the layer's output a replaced by steer(a) at `positions`."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        value = (output[0] if isinstance(output, tuple) else output).clone()
        for position in positions:
            value[0, position] = steer(value[0, position])
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = block(family).register_forward_hook(hook)
    try:
        return hugging_face(family)(torch.tensor([row]), use_cache=False).logits[0]
    finally:
        handle.remove()


@torch.no_grad()
def activations(family: Family, n: int = 60) -> ContrastiveActivations:
    """What the layer holds after random texts of words from the first half of the vocabulary, and from the second."""
    generator = torch.Generator().manual_seed(0)
    sides, found = (torch.randint(low, low + 10, (n, 6), generator=generator) for low in (4, 14)), []
    handle = block(family).register_forward_hook(
        lambda module, args, output: found.append((output[0] if isinstance(output, tuple) else output)[:, -1])
    )
    try:
        for side in sides:
            hugging_face(family)(side, use_cache=False)
    finally:
        handle.remove()
    return ContrastiveActivations(found[0], found[1], layer=LAYER, processing="raw")


def differences(family: Family, rows: list[list[int]], new: TokenIds, found: Tensor, steer: Any) -> tuple[float, float]:
    """The largest distance of the logits found [batch, steps, d_vocab] from the steered ones, and the smallest effect
    that steering has in a row. `new` [batch, steps] was generated; steered: the last prompt token and what follows."""
    worst, effect = 0.0, float("inf")
    for row, generated, mine in zip(rows, new.tolist(), found, strict=True):
        whole, last = row + generated[:-1], len(row) - 1
        steered = logits(family, whole, steer, range(last, len(whole)))[last:]
        plain = logits(family, whole, steer, ())[last:]
        worst = max(worst, (mine - steered).abs().nan_to_num(torch.inf).max().item())
        effect = min(effect, (steered - plain).abs().max().item())
    return worst, effect
