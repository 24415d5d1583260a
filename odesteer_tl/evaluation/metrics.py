"""Metrics of continuations: plain functions of texts and numbers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Dist-n: distinct n-grams of whitespace words over all n-grams, pooled over the texts.

    Pooling detects both repetition within a text and between texts. Compare only equal numbers of texts of equal
    length. 0 where no text has n words. Source: Li et al., arXiv:1510.03055.
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def bootstrap_interval(
    scores: Float[Tensor, "prompts samples"], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean score, prompts resampled with replacement.

    Continuations of one prompt are not independent, so whole prompts are drawn. The global generator is not used.
    """
    generator = torch.Generator().manual_seed(seed)
    per_prompt = scores.double().mean(1)
    draws = torch.randint(len(per_prompt), (resamples, len(per_prompt)), generator=generator, device="cpu")
    means = per_prompt[draws].mean(1)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu")).tolist()
    return low, high
