"""How far steering moves what a model would say: KL of the next-token distribution, on the model's own continuations.

KL(p ‖ q) = Σ p (log p − log q) in nats at every steered token, p the unsteered distribution of the next token and q the
steered one, both after the same text: a prompt and what the unsteered model made of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Samples, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.batches import read_batches
from odesteer_tl.backends.outputs import Generation
from odesteer_tl.backends.steer import steering
from odesteer_tl.backends.tokenize import trimmed
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import checked, chosen_by


@dataclass(frozen=True, eq=False)
class SteeredTexts:
    """Texts that a model wrote unsteered, and which of their tokens `positions` names [batch, pos]."""

    model: Any
    texts: Generation
    positions: Positions
    named: TokenMask
    layer: int | None = None
    blocks: Any = None

    @classmethod
    def of(
        cls,
        model: Any,
        texts: Generation,
        positions: Positions = "decoding",
        layer: int | None = None,
        blocks: Any = None,
    ) -> "SteeredTexts":
        """Raises ValueError for positions that name no token of any text."""
        index = texts.mask.long().cumsum(1) - 1
        named = chosen_by(checked(positions), index, texts.prompt_lengths) & texts.mask
        if not bool(named.any()):
            raise ValueError(f"positions={positions!r} names no token of these texts: nothing would be steered.")
        return cls(model, texts, positions, named, layer, blocks)

    @torch.no_grad()
    def divergences(
        self, pairs: Callable[[Any], list[tuple[Any, Strength]]], values: Sequence[float], batch_size: int
    ) -> Float[Tensor, "strengths tokens"]:
        """KL(unsteered ‖ steered) at every steered token, in nats, for each of the `values` of a strength; `batch_size`
        rows share a pass. `pairs(value)`: the methods with their strengths, of a tensor of one value per row.

        Raises ValueError as `steering` does.
        """
        backend, costs = backend_of(self.model), []
        for rows in torch.arange(len(self.named)).split(max(1, batch_size // len(values))):
            batch = trimmed(Tokenised(self.texts.tokens[rows], self.texts.mask[rows]))
            named = self.named[rows][:, -batch.mask.shape[1] :]
            if not bool(named.any()):
                continue
            p = backend.logits(self.model, batch)[named].log_softmax(-1)
            copies = torch.arange(len(rows)).repeat(len(values))  # all rows at the first strength, then the next
            with self._steering(pairs, values, rows, copies):
                logits = backend.logits(self.model, Tokenised(batch.tokens[copies], batch.mask[copies]))
            steered = logits.unflatten(0, (len(values), len(rows)))
            costs.append(torch.stack([_kl(p, q[named].log_softmax(-1)) for q in steered]))
        return torch.cat(costs, dim=1)

    def _steering(self, pairs: Any, values: Sequence[float], rows: Tensor, copies: Tensor) -> Any:
        """The block that steers every copy of a row by its own strength."""
        own = torch.tensor([float(value) for value in values]).repeat_interleave(len(rows))
        positions, lengths = self.positions, self.texts.prompt_lengths[rows][copies]
        if isinstance(positions, Tensor) and positions.ndim == 2:
            positions = positions[rows][copies]
        return steering(
            self.model, pairs(own), positions=positions, prompt_lengths=lengths, layer=self.layer, blocks=self.blocks
        )

    def activations(self, site: Site, batch_size: int) -> Samples:
        """What the unsteered model holds at `site` at the named tokens [n, width], in float32 or float64."""
        texts = Tokenised(self.texts.tokens, self.texts.mask)
        values, _, _ = read_batches(
            self.model, texts, [site], "all", batch_size, blocks=self.blocks, readable=self.named, keep_sinks=True
        )
        return values[0]


def _kl(p: Float[Tensor, "tokens d_vocab"], q: Float[Tensor, "tokens d_vocab"]) -> Float[Tensor, " tokens"]:
    """KL of log-probabilities p and q, in float64: small divergences are differences of numbers near 10."""
    p, q = p.double(), q.double()
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)
