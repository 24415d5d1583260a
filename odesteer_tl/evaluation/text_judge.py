"""A judge of one's own texts where none is given: TF-IDF and logistic regression, fitted to the two sides.

It has seen the texts that methods are fitted on, so that it flatters them: a judge of other texts says more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from odesteer_tl.evaluation.judge import Judge

NGRAMS = (1, 2)
FOLDS = 5


def fitted_judge(desired: Sequence[str], undesired: Sequence[str], seed: int = 0) -> tuple[Judge, float]:
    """P(desired | text) = σ(w · tfidf(text) + b), and the mean over both sides of the share of held-out texts that it
    judges right, by five folds. Raises ValueError for fewer than five texts a side, and for texts without words."""
    from sklearn.model_selection import StratifiedKFold

    if min(len(desired), len(undesired)) < FOLDS:
        raise ValueError(f"A judge needs at least {FOLDS} texts a side; got {len(desired)} and {len(undesired)}.")
    texts = np.array([*desired, *undesired], dtype=object)
    labels = np.array([1] * len(desired) + [0] * len(undesired))
    right = np.zeros(len(texts))
    for rows, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels):
        judged = _fitted(texts[rows].tolist(), labels[rows]).positive_probability(texts[held].tolist()) > 0.5
        right[held] = judged.numpy() == labels[held]
    return _fitted(texts.tolist(), labels), float(right[labels == 1].mean() + right[labels == 0].mean()) / 2


def _fitted(texts: list[str], labels: Any) -> Judge:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=NGRAMS, sublinear_tf=True)
    analysed = words.build_analyzer()
    if not any(map(analysed, texts)):
        raise ValueError("These texts hold no words of two letters or more, on which a judge could be fitted.")
    rows = words.fit_transform(texts)
    found = LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000).fit(rows, labels)
    terms = sorted(words.vocabulary_, key=words.vocabulary_.__getitem__)
    return Judge(
        vocabulary=tuple(terms),
        idf=torch.from_numpy(words.idf_).float(),
        weight=torch.from_numpy(found.coef_[0]).float(),
        bias=float(found.intercept_[0]),
        ngram_range=NGRAMS,
        sublinear_tf=True,
        trained_on=f"{int(labels.sum())} desired and {int((1 - labels).sum())} undesired texts",
    )
