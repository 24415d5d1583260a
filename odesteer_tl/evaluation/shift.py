"""The shift, Δ log p(desired) − Δ log p(undesired), of held-out texts: in their own words' places, and in all places.

In its own place a word x of a text gains log q(x) − log p(x) after the words before it. Texts differ in much besides
the two sides, so that the mean over a few dozen texts is mostly chance. In all places it gains the mean of that over
every steered token of all texts, λ(x): the same words, without the chance of where they stand, at the price of what
depends on it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.evaluation.judged_texts import JudgedTexts, PerText


@dataclass(frozen=True)
class Estimate:
    """A mean, in nats per text, and its standard error over texts."""

    value: float
    error: float


def in_own_places(judged: JudgedTexts, gains: PerText) -> Estimate:
    """The mean over desired texts of Σ log q(x) − log p(x), less that over undesired ones."""
    n = judged.n_steered[0]
    high, low = gains[:n].double(), gains[n:].double()
    return Estimate(float(high.mean() - low.mean()), _error(high, low, judged.pairs))


def in_all_places(judged: JudgedTexts, lift: Float[Tensor, " d_vocab"]) -> Estimate:
    """n (λ̄ desired − λ̄ undesired): λ̄ the mean lift over all words of a side's windows, n the mean number of words in a
    window. A lift of all words alike changes nothing."""
    lift, means, deviations = lift.double().cpu(), [], []
    words = torch.tensor([len(window) for side in judged.windows for window in side], dtype=torch.float64).mean()
    for side in judged.windows:
        sums = torch.stack([lift[window].sum() for window in side])
        counts = torch.tensor([len(window) for window in side], dtype=torch.float64)
        means.append(sums.sum() / counts.sum())
        deviations.append((sums - means[-1] * counts) / counts.mean() * words)  # of a ratio, to first order
    return Estimate(float((means[0] - means[1]) * words), _error(*deviations, judged.pairs))


def combined(one: Estimate, other: Estimate) -> Estimate:
    """Their mean, weighted by the inverse of their variances. They are of the same texts: its error is the mean of
    theirs, with the same weights, which is too large rather than too small."""
    variances = one.error**2, other.error**2
    share = 0.5 if not sum(variances) > 0 else variances[1] / sum(variances)
    return Estimate(
        share * one.value + (1 - share) * other.value, share * one.error + (1 - share) * other.error
    )


def _error(high: Float[Tensor, " desired"], low: Float[Tensor, " undesired"], pairs: bool) -> float:
    if pairs:
        return float((high - low).std() / len(high) ** 0.5)
    return float((high.var() / len(high) + low.var() / len(low)) ** 0.5)
