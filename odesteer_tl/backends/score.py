"""Scores generated tokens by the log-likelihood of the unsteered model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.generate import Generation
from odesteer_tl.backends.tokenize import longest_first, trimmed
from odesteer_tl.data.tokens import Tokenised


@torch.no_grad()
def token_losses(model: Any, out: Generation, batch_size: int = 32) -> tuple[Float[Tensor, "batch pos"], TokenMask]:
    """−log p of every generated token given all before it, in nats, and the mask of the tokens that count, [batch,
    pos].

    Call it outside a `steering` block for the losses of the unsteered model. Perplexity is
    exp(losses.sum() / mask.sum()). Prompt tokens, pads and tokens after an EOS do not count and have loss 0. Rows of
    similar length share a batch, so that there are few pads.
    """
    backend = backend_of(model)
    counted = out.mask & (out.mask.long().cumsum(1) > out.prompt_lengths.unsqueeze(1))
    losses = torch.zeros(counted.shape, device="cpu")
    for rows in longest_first(out.mask).split(batch_size):
        batch = trimmed(Tokenised(out.tokens[rows], out.mask[rows]))
        first = counted.shape[1] - batch.tokens.shape[1]
        logits = backend.logits(model, batch)
        at, columns = counted[rows, first + 1 :].nonzero(as_tuple=True)  # of the tokens before
        losses[rows[at], first + columns + 1] = torch.nn.functional.cross_entropy(
            logits[at, columns], batch.tokens[at, columns + 1], reduction="none"
        )
    return losses, counted
