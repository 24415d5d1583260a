"""A sentiment judge: TF-IDF and logistic regression, small enough to ship and to read.

It does not use the steered model, and was not trained on the texts that steering is fitted or validated on.
scikit-learn is imported when a judge is first used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl import assets


@dataclass(frozen=True)
class Judge:
    """P(positive | text) = σ(weight · tfidf(text) + bias)."""

    vocabulary: tuple[str, ...]
    """Terms of one or two words, in the order of `idf` and `weight`."""
    idf: Float[Tensor, " term"]
    weight: Float[Tensor, " term"]
    bias: float
    ngram_range: tuple[int, int]
    sublinear_tf: bool
    trained_on: str
    """A sentence on the training data, for tables."""

    @classmethod
    def load(cls, folder: str | Path) -> "Judge":
        """Read `judge.json` and `judge.safetensors` from a folder."""
        from safetensors.torch import load_file

        record = json.loads((Path(folder) / "judge.json").read_text(encoding="utf-8"))
        numbers = load_file(Path(folder) / "judge.safetensors")
        return cls(
            vocabulary=tuple(record["vocabulary"]),
            idf=numbers["idf"].float(),
            weight=numbers["weight"].float(),
            bias=record["bias"],
            ngram_range=tuple(record["ngram_range"]),
            sublinear_tf=record["sublinear_tf"],
            trained_on=record["trained_on"],
        )

    @classmethod
    def load_embedded(cls) -> "Judge":
        """The judge of film reviews that comes with the package."""
        return cls.load(assets.FOLDER)

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            vocabulary=self.vocabulary, ngram_range=self.ngram_range, sublinear_tf=self.sublinear_tf
        )
        vectorizer.idf_ = self.idf.double().numpy()
        return vectorizer

    def positive_probability(self, texts: Sequence[str]) -> Float[Tensor, " text"]:
        """Probability that each text is positive, in float64. A text without a known term gets σ(bias)."""
        if not texts:
            return torch.empty(0, dtype=torch.float64, device="cpu")
        features = self._vectorizer.transform(texts)
        return torch.sigmoid(torch.from_numpy(features @ self.weight.double().numpy()) + self.bias)

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """Share of texts judged as labelled (1 positive, 0 negative), at a threshold of one half."""
        if len(texts) != len(labels) or not texts:
            raise ValueError(
                f"accuracy needs as many labels as texts and at least one, got {len(labels)} labels "
                f"for {len(texts)} texts."
            )
        judged = self.positive_probability(texts) >= 0.5
        return (judged == torch.tensor(labels, device="cpu").bool()).double().mean().item()

    def heldout_accuracy(self, words: int | None = None) -> float:
        """Accuracy on the 500 embedded held-out reviews, or on `words` words from the middle of each."""
        reviews = assets.heldout_reviews()
        texts = [_middle(str(review["text"]), words) for review in reviews]
        return self.accuracy(texts, [int(review["label"]) for review in reviews])


def _middle(text: str, words: int | None) -> str:
    parts = text.split()
    if words is None or len(parts) <= words:
        return text
    start = (len(parts) - words) // 2
    return " ".join(parts[start : start + words])
