"""Scores generated tokens by the log-likelihood of the unsteered model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import PerRow, TokenMask
from odesteer_tl.backends.generate import Generation
from odesteer_tl.backends.text_passes import TextPasses
from odesteer_tl.backends.tokenize import longest_first
from odesteer_tl.data.tokens import Tokenised


@torch.no_grad()
def token_losses(model: Any, out: Generation, batch_size: int = 32) -> tuple[Float[Tensor, "batch pos"], TokenMask]:
    """−log p of every generated token given all before it, in nats, and the mask of the tokens that count, [batch,
    pos].

    Call it outside a `steering` block for the losses of the unsteered model. Perplexity is
    exp(losses.sum() / mask.sum()). Prompt tokens, the first token of a text, pads and tokens after an EOS do not count
    and have loss 0. Rows of one prompt share a batch, in which it is computed once where the model allows it, and
    otherwise rows of similar length, so that there are few pads.
    """
    counted = out.mask & (out.mask.long().cumsum(1) > out.prompt_lengths.clamp_min(1).unsqueeze(1))
    before = torch.nn.functional.pad(counted[:, 1:], (0, 1))
    passes = TextPasses(model, Tokenised(out.tokens, out.mask), out.prompt_lengths, before)
    losses = torch.zeros(counted.shape, device="cpu")
    for rows in _prompts_together(out).split(batch_size):
        part = passes.of(rows, keep=False)
        logits = part.logits()[part.places]
        at, columns = counted[rows].nonzero(as_tuple=True)
        losses[rows[at], columns] = torch.nn.functional.cross_entropy(logits, part.following, reduction="none")
    return losses, counted


def _prompts_together(out: Generation) -> PerRow:
    """The rows, those of one prompt one after the other, and prompts with the longest texts first."""
    prompts = [
        tuple(row[real][:length].tolist())
        for row, real, length in zip(out.tokens, out.mask, out.prompt_lengths.tolist(), strict=True)
    ]
    order = longest_first(out.mask).tolist()
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts[row] for row in order))}
    return torch.tensor(sorted(order, key=lambda row: numbers[prompts[row]]), device="cpu")
