"""The shift, Δ log p(desired) − Δ log p(undesired), of held-out texts: in their own words' places, and in all places.

In its own place a word x of a text gains log q(x) − log p(x) after the words before it. Texts differ in much besides
the two sides, so that the mean over a few dozen texts is mostly chance. In all places it gains the mean of that over
every steered token of all texts, λ(x): the same words, without the chance of where they stand, at the price of what
depends on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.evaluation.judged_texts import JudgedTexts, PerText


@dataclass(frozen=True, eq=False)
class Estimate:
    """A `value` in nats per text, and what each text, or pair of texts, adds to its deviation [texts]: the standard
    error is the root of the sum of squares, and so is that of a difference of two estimates on the same texts."""

    value: float
    deviations: PerText

    @property
    def error(self) -> float:
        """The standard error over texts."""
        return float(self.deviations.norm())

    def error_of_difference(self, other: "Estimate") -> float:
        """The standard error of the difference of the values: what both have of the same texts cancels."""
        return float((self.deviations - other.deviations).norm())


def in_own_places(judged: JudgedTexts, gains: PerText) -> Estimate:
    """The mean over desired texts of Σ log q(x) − log p(x), less that over undesired ones."""
    n = judged.n_steered[0]
    sides = gains[:n].double(), gains[n:].double()
    parts = [torch.nn.functional.pad(_parts(of), (0, n - len(of))) for of, n in zip(sides, judged.counts, strict=True)]
    return Estimate(float(sides[0].mean() - sides[1].mean()), _joined(parts, judged.pairs))


def in_all_places(judged: JudgedTexts, lift: Float[Tensor, " d_vocab"]) -> Estimate:
    """n (λ̄ desired − λ̄ undesired): λ̄ the mean lift over all words of a side's windows, n the mean number of words in a
    window. A lift of all words alike changes nothing."""
    lift, means, parts = lift.double().cpu(), [], []
    words = sum(len(window) for side in judged.windows for window in side) / sum(judged.counts)
    for side in judged.windows:
        sums = torch.stack([lift[window].sum() for window in side])
        counts = torch.tensor([len(window) for window in side], dtype=torch.float64, device="cpu")
        means.append(sums.sum() / counts.sum())
        parts.append(_parts((sums - means[-1] * counts) / counts.mean() * words))  # of a ratio, to first order
    return Estimate(float((means[0] - means[1]) * words), _joined(parts, judged.pairs))


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates on different texts."""
    n = len(estimates)
    return Estimate(sum(one.value for one in estimates) / n, torch.cat([one.deviations / n for one in estimates]))


def combined(one: Estimate, other: Estimate) -> Estimate:
    """The mean of both, weighted by the inverse of their variances."""
    variances = one.error**2, other.error**2
    share = 0.5 if not sum(variances) > 0 else variances[1] / sum(variances)
    value = share * one.value + (1 - share) * other.value
    return Estimate(value, share * one.deviations + (1 - share) * other.deviations)


def _parts(of_texts: PerText) -> PerText:
    """What each text adds to the deviation of the mean over them."""
    n = len(of_texts)
    return (of_texts - of_texts.mean()) / (n * (n - 1)) ** 0.5


def _joined(parts: list[Tensor], pairs: bool) -> PerText:
    return parts[0] - parts[1] if pairs else torch.cat([parts[0], -parts[1]])
