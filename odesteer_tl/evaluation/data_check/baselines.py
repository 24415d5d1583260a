"""Trivial baselines: what a logistic regression tells by the length, the words, or one token of a text alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.evaluation.data_check.rankings import Folds, Ranking, ranking
from odesteer_tl.evaluation.data_check.surface import Surface


def baselines(surface: Surface, folds: Folds, units: list[int]) -> list[Ranking]:
    """Length in tokens, bag of words (present or not), first and last token, each fitted anew in every fold."""
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    lengths = [[float(len(row))] for row in surface.tokens]
    firsts, lasts = ([[row[place]] for row in surface.tokens] for place in (0, -1))
    makers: list[tuple[str, Callable[[], Any], list[Any]]] = [
        ("length", StandardScaler, lengths),
        ("bag of words", _bag, surface.texts),
        ("first token", lambda: OneHotEncoder(handle_unknown="ignore"), firsts),
        ("last token", lambda: OneHotEncoder(handle_unknown="ignore"), lasts),
    ]
    return [
        ranking(name, _regression(make, rows, surface.n_desired), folds, surface.n_desired, units)
        for name, make, rows in makers
    ]


def heaviest_words(surface: Surface, count: int = 3) -> list[str]:
    """The words by which a logistic regression on all texts tells the sides apart most, each with its side."""
    labels = [row < surface.n_desired for row in range(len(surface.texts))]
    bag, regression = (step for _, step in _pipeline(_bag).fit(surface.texts, labels).steps)
    words, weights = bag.get_feature_names_out(), regression.coef_[0]
    found = sorted(range(len(words)), key=lambda number: -abs(weights[number]))[:count]
    return [f"{words[number]!r} ({'' if weights[number] > 0 else 'un'}desired)" for number in found]


def _bag() -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(binary=True, token_pattern=r"\w+|[^\w\s]")


def _pipeline(make: Callable[[], Any]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(make(), LogisticRegression(max_iter=1000, class_weight="balanced"))


def _regression(make: Callable[[], Any], rows: list[Any], n_desired: int) -> Callable[[Tensor, Tensor], Tensor]:
    def score(fit: Tensor, held: Tensor) -> Tensor:
        model = _pipeline(make)
        model.fit(*_chosen(rows, fit, n_desired))
        return torch.as_tensor(model.decision_function(_chosen(rows, held, n_desired)[0]), device="cpu")

    return score


def _chosen(rows: list[Any], mask: Tensor, n_desired: int) -> tuple[list[Any], list[int]]:
    numbers = mask.nonzero().flatten().tolist()
    return [rows[number] for number in numbers], [int(number < n_desired) for number in numbers]
