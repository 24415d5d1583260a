"""How far steering moves what a model would say: KL of the next-token distribution, on the model's own continuations.

KL(p ‖ q) = Σ p (log p − log q) in nats at every steered token, p the unsteered distribution of the next token and q the
steered one, both after the same text: a prompt and what the unsteered model made of it.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl._shapes import PerRow, Samples, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.batches import read_batches
from odesteer_tl.backends.outputs import Generation
from odesteer_tl.backends.steer import edit_runner_for, steering
from odesteer_tl.backends.text_passes import TextPasses, TextRows
from odesteer_tl.backends.tokenize import left_padded, longest_first
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.next_tokens import divergence, effects, log_probabilities
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import checked, chosen_by

MOST_KEPT = 2**29
"""Bytes of unsteered log-probabilities that are kept for the next strengths."""

Pairs = Callable[[Any], list[tuple[Any, Strength]]]
"""The methods with their strengths, of a tensor of one value per row."""

Words = Int[Tensor, " words"]


@contextmanager
def only_tried() -> Iterator[None]:
    """Inside the block no warning says that T is less than rounding: these T are tried, and nobody has chosen them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "T moves an activation", UserWarning)
        yield


@dataclass(frozen=True, eq=False)
class SteeredTexts:
    """Texts that a model wrote unsteered, of which `positions` names tokens. `passes`: what runs them, and the named
    tokens. `remote`: the server, if any, that runs the model."""

    model: Any
    texts: Generation
    positions: Positions
    passes: TextPasses
    layer: int | None = None
    blocks: Any = None
    remote: bool | str = False
    _unsteered: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Any,
        texts: Generation,
        positions: Positions = "decoding",
        layer: int | None = None,
        blocks: Any = None,
        remote: bool | str = False,
    ) -> "SteeredTexts":
        """Raises ValueError for positions that name no token of any text."""
        index = texts.mask.long().cumsum(1) - 1
        named = chosen_by(checked(positions), index, texts.prompt_lengths) & texts.mask
        if not bool(named.any()):
            raise ValueError(f"positions={positions!r} names no token of these texts: nothing would be steered.")
        passes = TextPasses(model, Tokenised(texts.tokens, texts.mask), texts.prompt_lengths, named)
        return cls(model, texts, positions, passes, layer, blocks, remote)

    @classmethod
    def given(
        cls,
        model: Any,
        rows: Sequence[Tensor],
        prompt_lengths: PerRow,
        blocks: Any = None,
        remote: bool | str = False,
    ) -> "SteeredTexts":
        """Texts that somebody else wrote, token by token; those after their first `prompt_lengths` tokens are steered,
        as they would be in a generation."""
        tokens, mask = left_padded([row.tolist() for row in rows], filler=0)
        written = Generation([], [], tokens, mask, prompt_lengths, None)
        return cls.of(model, written, blocks=blocks, remote=remote)

    @property
    def named(self) -> TokenMask:
        """The steered tokens [batch, pos]."""
        return self.passes.named

    def divergences(self, pairs: Pairs, values: Sequence[float], batch_size: int) -> Float[Tensor, "strengths tokens"]:
        """KL(unsteered ‖ steered) at every steered token, in nats, for each of the `values` of a strength; `batch_size`
        rows share a pass.

        Raises ValueError as `steering` does, and with `remote` as `generate` does.
        """
        return self.effects(pairs, values, batch_size).costs

    @torch.no_grad()
    def effects(self, pairs: Pairs, values: Sequence[float], batch_size: int, words: Words | None = None) -> "Effects":
        """The `divergences`, and what becomes likelier, at each of the `values`: of the vocabulary, `words`."""
        costs, sources, gains = [], [], torch.zeros(len(values), len(self.named), dtype=torch.float64, device="cpu")
        words = torch.zeros(0, dtype=torch.long, device="cpu") if words is None else words
        lifted = torch.zeros(len(values), len(words), dtype=torch.float64, device="cpu")
        measure = self._there if self.remote else self._here
        copies = len(values) + bool(self.remote)  # a server runs the unsteered rows in the same pass
        for rows in longest_first(self.texts.mask).split(max(1, batch_size // copies)):
            part = self.passes.of(rows)
            if not bool(part.named.any()):
                continue
            with only_tried():
                of_batch = measure(rows, part, pairs, values, words)
            costs.append(of_batch[0])
            sources.append(rows[part.places[0]])
            gains[:, rows] += of_batch[1]
            lifted += of_batch[2]
        lifts = lifted.new_full((len(values), int(words.max()) + 1 if len(words) else 0), torch.nan)
        lifts[:, words] = lifted / int(self.named.sum())
        return Effects(torch.cat(costs, dim=1)[:, torch.cat(sources).argsort(stable=True)], gains, lifts)

    def _here(
        self, rows: Tensor, part: TextRows, pairs: Pairs, values: Sequence[float], words: Words
    ) -> tuple[Tensor, Tensor, Tensor]:
        p, (steered, where) = self.log_probabilities(rows), self._steered(rows, pairs, values)
        with steering(self.model, steered, **where):
            logits = part.logits(len(values))
        return effects(p, logits, *part.places, _following(part), len(rows), words)

    def _there(
        self, rows: Tensor, part: TextRows, pairs: Pairs, values: Sequence[float], words: Words
    ) -> tuple[Tensor, Tensor, Tensor]:
        given, where = self._steered(rows, pairs, values)
        steered = pairs_of(given, None, None, self.layer)
        written = edit_runner_for(self.model, steered, **where).tokens_steered  # it checks that the method fits
        return backend_of(self.model).effects_remotely(
            self.model, part.batch, part.named, _following(part), words, len(values), steered, where, self.remote,
            written,
        )  # fmt: skip

    @torch.no_grad()
    def log_probabilities(self, rows: Tensor) -> Float[Tensor, "tokens d_vocab"]:
        """Of what follows the named tokens of these rows, unsteered: computed once for the same rows, as long as all of
        them fit into `MOST_KEPT` bytes."""
        key = tuple(rows.tolist())
        if key in self._unsteered:
            return self._unsteered[key]
        part = self.passes.of(rows)
        p = log_probabilities(part.logits(), *part.places)
        kept = sum(other.numel() * other.element_size() for other in self._unsteered.values())
        if kept + p.numel() * p.element_size() <= MOST_KEPT:
            self._unsteered[key] = p
        return p

    def _steered(
        self, rows: Tensor, pairs: Pairs, values: Sequence[float]
    ) -> tuple[list[tuple[Any, Strength]], dict[str, Any]]:
        """The methods with one strength per steered row, and where they steer: all rows at the first value, then at the
        next."""
        copies, positions = rows.repeat(len(values)), self.positions
        own = torch.tensor([float(value) for value in values], device="cpu").repeat_interleave(len(rows))
        if isinstance(positions, Tensor) and positions.ndim == 2:
            positions = positions[copies]
        where = {"positions": positions, "prompt_lengths": self.texts.prompt_lengths[copies]}
        return pairs(own), where | {"layer": self.layer, "blocks": self.blocks}

    def activations(self, site: Site, batch_size: int) -> Samples:
        """What the unsteered model holds at `site` at the named tokens [n, width], in float32 or float64."""
        rows = self.named.any(1)
        texts = Tokenised(self.texts.tokens[rows], self.texts.mask[rows])
        ((values, _, _),) = read_batches(
            self.model, texts, [site], ["all"], batch_size, remote=self.remote, blocks=self.blocks,
            readable=self.named[rows], keep_sinks=True,
        )  # fmt: skip
        return values[0]


@torch.no_grad()
def divergence_between(one: SteeredTexts, other: SteeredTexts, batch_size: int) -> Float[Tensor, " tokens"]:
    """KL(p ‖ q) at the named tokens of both, in nats, both unsteered: the same tokens after other prompts, say."""
    rows = torch.arange(len(one.named), device="cpu").split(batch_size)
    return torch.cat([divergence(one.log_probabilities(part), other.log_probabilities(part)) for part in rows])


@dataclass(frozen=True, eq=False)
class Effects:
    """What steering at several strengths does to texts, in nats.

    `costs`: KL(unsteered ‖ steered) at every steered token. `gains`: how much likelier each text becomes, Σ log q(x) −
    log p(x) over the tokens x that follow a steered one. `lifts`: how much likelier a token v of the vocabulary
    becomes, the mean of log q(v) − log p(v) over all steered tokens, whatever follows them; NaN for tokens that were
    not asked for.
    """

    costs: Float[Tensor, "strengths tokens"]
    gains: Float[Tensor, "strengths texts"]
    lifts: Float[Tensor, "strengths ids"]


def _following(part: TextRows) -> Int[Tensor, " tokens"]:
    """The token after each named one, -1 where its row ends."""
    tokens = torch.nn.functional.pad(part.batch.tokens.masked_fill(~part.batch.mask, -1), (0, 1), value=-1)
    return tokens[:, 1:][part.named]
