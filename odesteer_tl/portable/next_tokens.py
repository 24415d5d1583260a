"""What steering does to the distribution of the next token, in nats: p unsteered, q steered, after the same text.

This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 256
"""Tokens whose distributions are held in float64 at the same time."""


def log_probabilities(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """log p of what follows the tokens at (rows, columns) of [batch, pos, d_vocab], float32 [tokens, d_vocab]."""
    return logits.detach()[rows.to(logits.device), columns.to(logits.device)].float().log_softmax(-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities [tokens, d_vocab], in float64 [tokens]: small divergences are differences of
    numbers near 10."""
    parts = zip(p.split(_AT_ONCE), q.split(_AT_ONCE), strict=True)
    return torch.cat([_kl(one.double(), other.double()) for one, other in parts])


def effects(
    p: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, following: Tensor, texts: int, words: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What several strengths do to a batch of `texts` rows, at its steered tokens (rows, columns) [tokens].

    `p` [tokens, d_vocab] are the unsteered log-probabilities there; `logits` [strengths · texts, pos, d_vocab] the
    steered logits, those of all texts at the first strength before those at the next. `following` [tokens] is the token
    x after each steered one, -1 where there is none. Returns, in float64 on the CPU: KL(p ‖ q) [strengths, tokens]; the
    gain Σ log q(x) − log p(x) of each text [strengths, texts]; and Σ log q(v) − log p(v) over all steered tokens, for
    each v of `words` [strengths, words].
    """
    rows, columns, following, words = (each.to(p.device) for each in (rows, columns, following, words))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for steered in logits.split(texts):
        q = log_probabilities(steered, rows, columns).to(p.device)
        x = following.clamp_min(0).unsqueeze(1)
        gain = (q.gather(1, x) - p.gather(1, x)).squeeze(1).masked_fill(following < 0, 0).double()
        lifted = (q[:, words] - p[:, words]).sum(0, dtype=torch.float64)
        found.append((divergence(p, q), gain.new_zeros(texts).index_add(0, rows, gain), lifted))
    costs, gains, lifts = (torch.stack(part).cpu() for part in zip(*found, strict=True))
    return costs, gains, lifts


def likelihoods(logits: Tensor, rows: Tensor, columns: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """log p of the token x that follows each token at (rows, columns) of [batch, pos, d_vocab], float32 [tokens], and
    whether no token is likelier, bool [tokens]; both on the CPU. `following` [tokens] are the x."""
    found: list[tuple[Tensor, Tensor]] = []
    for part in zip(rows.split(_AT_ONCE), columns.split(_AT_ONCE), following.split(_AT_ONCE), strict=True):
        p, x = log_probabilities(logits, *part[:2]), part[2].to(logits.device)
        found.append((p.gather(1, x.unsqueeze(1)).squeeze(1).cpu(), (p.argmax(1) == x).cpu()))
    return torch.cat([one for one, _ in found]), torch.cat([other for _, other in found])


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)
