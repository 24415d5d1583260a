"""Trivial baselines: what a logistic regression tells by the length, the words, or one token of a text alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.evaluation.data_check.rankings import Folds, Ranking, ranking
from odesteer_tl.evaluation.data_check.surface import Surface


def baselines(surface: Surface, folds: Folds, units: list[int]) -> list[Ranking]:
    """Length in tokens, bag of words (present or not), first and last token, each fitted anew in every fold."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    lengths = [[float(len(row))] for row in surface.tokens]
    firsts, lasts = ([[row[place]] for row in surface.tokens] for place in (0, -1))
    makers: list[tuple[str, Callable[[], Any], list[Any]]] = [
        ("length", StandardScaler, lengths),
        ("bag of words", lambda: CountVectorizer(binary=True, token_pattern=r"\w+|[^\w\s]"), surface.texts),
        ("first token", lambda: OneHotEncoder(handle_unknown="ignore"), firsts),
        ("last token", lambda: OneHotEncoder(handle_unknown="ignore"), lasts),
    ]
    return [
        ranking(name, _regression(make, rows, surface.n_desired), folds, surface.n_desired, units)
        for name, make, rows in makers
    ]


def _regression(make: Callable[[], Any], rows: list[Any], n_desired: int) -> Callable[[Tensor, Tensor], Tensor]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def score(fit: Tensor, held: Tensor) -> Tensor:
        model = make_pipeline(make(), LogisticRegression(max_iter=1000, class_weight="balanced"))
        model.fit(*_chosen(rows, fit, n_desired))
        return torch.as_tensor(model.decision_function(_chosen(rows, held, n_desired)[0]), device="cpu")

    return score


def _chosen(rows: list[Any], mask: Tensor, n_desired: int) -> tuple[list[Any], list[int]]:
    numbers = mask.nonzero().flatten().tolist()
    return [rows[number] for number in numbers], [int(number < n_desired) for number in numbers]
