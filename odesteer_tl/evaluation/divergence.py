"""How far steering moves what a model would say: KL of the next-token distribution, on the model's own continuations.

KL(p ‖ q) = Σ p (log p − log q) in nats at every steered token, p the unsteered distribution of the next token and q the
steered one, both after the same text: a prompt and what the unsteered model made of it.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import PerRow, Samples, TokenIds, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.batches import read_batches
from odesteer_tl.backends.outputs import Generation
from odesteer_tl.backends.steer import steering
from odesteer_tl.backends.tokenize import left_padded, trimmed
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import checked, chosen_by

MOST_KEPT = 2**29
"""Bytes of unsteered log-probabilities that are kept for the next strengths."""


@dataclass(frozen=True, eq=False)
class SteeredTexts:
    """Texts that a model wrote unsteered, and which of their tokens `positions` names [batch, pos]."""

    model: Any
    texts: Generation
    positions: Positions
    named: TokenMask
    layer: int | None = None
    blocks: Any = None
    _unsteered: dict[tuple[int, int], Tensor] = field(default_factory=dict)

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

    @classmethod
    def given(cls, model: Any, rows: Sequence[Tensor], prompt_lengths: PerRow, blocks: Any = None) -> "SteeredTexts":
        """Texts that somebody else wrote, token by token; those after their first `prompt_lengths` tokens are steered,
        as they would be in a generation."""
        tokens, mask = left_padded([row.tolist() for row in rows], filler=0)
        return cls.of(model, Generation([], [], tokens, mask, prompt_lengths, None), blocks=blocks)

    @torch.no_grad()
    def divergences(
        self, pairs: Callable[[Any], list[tuple[Any, Strength]]], values: Sequence[float], batch_size: int
    ) -> Float[Tensor, "strengths tokens"]:
        """KL(unsteered ‖ steered) at every steered token, in nats, for each of the `values` of a strength; `batch_size`
        rows share a pass. `pairs(value)`: the methods with their strengths, of a tensor of one value per row.

        Raises ValueError as `steering` does.
        """
        return torch.cat([batch.costs for batch in self._batches(pairs, values, batch_size)], dim=1)

    @torch.no_grad()
    def effects(
        self, pairs: Callable[[Any], list[tuple[Any, Strength]]], values: Sequence[float], batch_size: int
    ) -> "Effects":
        """The `divergences`, and what becomes likelier, at each of the `values`."""
        costs, gains = [], torch.zeros(len(values), len(self.named), dtype=torch.float64, device="cpu")
        lifted: Any = 0.0
        for batch in self._batches(pairs, values, batch_size):
            costs.append(batch.costs)
            lifted = lifted + batch.lifted
            rows, columns = batch.named.nonzero(as_tuple=True)
            followed = columns + 1 < batch.named.shape[1]
            followed &= batch.real[rows, (columns + 1).clamp_max(batch.named.shape[1] - 1)]
            rows, columns = rows[followed], columns[followed]
            following = batch.tokens[rows, columns + 1].unsqueeze(1)
            before = batch.p[followed].gather(1, following)
            for number, q in enumerate(batch.q):
                gain = (q[followed].gather(1, following) - before).squeeze(1).double()
                gains[number].index_add_(0, batch.rows[rows], gain)
        return Effects(torch.cat(costs, dim=1), gains, lifted / int(self.named.sum()))

    @torch.no_grad()
    def _batches(self, pairs: Any, values: Sequence[float], batch_size: int) -> Iterator["_Batch"]:
        backend = backend_of(self.model)
        for rows in torch.arange(len(self.named), device="cpu").split(max(1, batch_size // len(values))):
            batch, named = self._rows(rows)
            if not bool(named.any()):
                continue
            p = self.log_probabilities(rows)
            # all rows at the first strength, then the next
            copies = torch.arange(len(rows), device="cpu").repeat(len(values))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "T moves an activation", UserWarning)  # these T are tried, not chosen
                with self._steering(pairs, values, rows, copies):
                    logits = backend.logits(self.model, Tokenised(batch.tokens[copies], batch.mask[copies]))
            steered = logits.unflatten(0, (len(values), len(rows)))
            yield _Batch(rows, batch.tokens, batch.mask, named, p, [of[named].log_softmax(-1) for of in steered])

    @torch.no_grad()
    def log_probabilities(self, rows: Tensor) -> Float[Tensor, "tokens d_vocab"]:
        """Of what follows the named tokens of these neighbouring rows, unsteered: computed once for the same rows, as
        long as all of them fit into `MOST_KEPT` bytes."""
        key = (int(rows[0]), len(rows))
        if key in self._unsteered:
            return self._unsteered[key]
        batch, named = self._rows(rows)
        p = backend_of(self.model).logits(self.model, batch)[named].log_softmax(-1)
        kept = sum(other.numel() * other.element_size() for other in self._unsteered.values())
        if kept + p.numel() * p.element_size() <= MOST_KEPT:
            self._unsteered[key] = p
        return p

    def _rows(self, rows: Tensor) -> tuple[Tokenised, TokenMask]:
        """The rows without common padding, and which of their tokens are named."""
        batch = trimmed(Tokenised(self.texts.tokens[rows], self.texts.mask[rows]))
        return batch, self.named[rows][:, -batch.mask.shape[1] :]

    def _steering(self, pairs: Any, values: Sequence[float], rows: Tensor, copies: Tensor) -> Any:
        """The block that steers every copy of a row by its own strength."""
        own = torch.tensor([float(value) for value in values], device="cpu").repeat_interleave(len(rows))
        positions, lengths = self.positions, self.texts.prompt_lengths[rows][copies]
        if isinstance(positions, Tensor) and positions.ndim == 2:
            positions = positions[rows][copies]
        return steering(
            self.model, pairs(own), positions=positions, prompt_lengths=lengths, layer=self.layer, blocks=self.blocks
        )

    def activations(self, site: Site, batch_size: int) -> Samples:
        """What the unsteered model holds at `site` at the named tokens [n, width], in float32 or float64."""
        texts = Tokenised(self.texts.tokens, self.texts.mask)
        ((values, _, _),) = read_batches(
            self.model, texts, [site], ["all"], batch_size, blocks=self.blocks, readable=self.named, keep_sinks=True
        )
        return values[0]


@torch.no_grad()
def divergence_between(one: SteeredTexts, other: SteeredTexts, batch_size: int) -> Float[Tensor, " tokens"]:
    """KL(p ‖ q) at the named tokens of both, in nats, both unsteered: the same tokens after other prompts, say."""
    costs = []
    for rows in torch.arange(len(one.named), device="cpu").split(batch_size):
        p, q = (texts.log_probabilities(rows) for texts in (one, other))
        costs.append(kl_of(p, q))
    return torch.cat(costs)


@dataclass(frozen=True, eq=False)
class Effects:
    """What steering at several strengths does to texts, in nats.

    `costs`: KL(unsteered ‖ steered) at every steered token. `gains`: how much likelier each text becomes, Σ log q(x) −
    log p(x) over the tokens x that follow a steered one. `lifts`: how much likelier each token of the vocabulary
    becomes, the mean of log q(v) − log p(v) over all steered tokens, whatever follows them.
    """

    costs: Float[Tensor, "strengths tokens"]
    gains: Float[Tensor, "strengths texts"]
    lifts: Float[Tensor, "strengths d_vocab"]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some `rows` of the texts in one pass: their tokens, which are real and which steered [batch, pos], and the
    log-probabilities of what follows the steered ones [tokens, d_vocab]: p unsteered, q for each strength."""

    rows: Tensor
    tokens: TokenIds
    real: TokenMask
    named: TokenMask
    p: Tensor
    q: list[Tensor]

    @property
    def costs(self) -> Float[Tensor, "strengths tokens"]:
        """KL(p ‖ q) at every steered token, in nats."""
        return torch.stack([kl_of(self.p, q) for q in self.q])

    @property
    def lifted(self) -> Float[Tensor, "strengths d_vocab"]:
        """Σ log q(v) − log p(v) over the steered tokens."""
        return torch.stack([(q - self.p).sum(0, dtype=torch.float64) for q in self.q])


def kl_of(p: Float[Tensor, "tokens d_vocab"], q: Float[Tensor, "tokens d_vocab"]) -> Float[Tensor, " tokens"]:
    """KL of log-probabilities p and q, in float64: small divergences are differences of numbers near 10."""
    p, q = p.double(), q.double()
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)
