"""What a benchmark is: folds of data to fit on and to be tested on, and what is measured of a model.

A benchmark of your own is any object with the names of `Benchmark`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from odesteer_tl._shapes import Position
from odesteer_tl.benchmarks.applied import Applied

Thing = TypeVar("Thing")


@dataclass(frozen=True, eq=False)
class Fold:
    """One fit and its test. `desired`, `undesired`: texts to fit on; with `queries`, answers to them, in pairs.
    `prompts`: on which strengths are found, of the fit side; `test_prompts`: on which their cost is reported. `test`:
    the items, in the benchmark's own form."""

    number: int
    desired: list[str]
    undesired: list[str]
    queries: list[str] | None
    prompts: list[str]
    test_prompts: list[str]
    test: Sequence[Any]


@dataclass(frozen=True, eq=False)
class Measured:
    """`scores` of every test item by measure, and `guardrails`, one number each, None where it is not finite."""

    scores: dict[str, list[float]]
    guardrails: dict[str, float | None] = field(default_factory=dict)


@runtime_checkable
class Benchmark(Protocol):
    """`name`; the `measures`, of which `primary` is the first to look at; `samples`: whether texts are sampled, so that
    every row is run under every seed; `prefixes` of the prompt-only row, none where it has none; `position`: which
    token of a text is read where a layer is given and no position."""

    @property
    def name(self) -> str: ...
    @property
    def primary(self) -> str: ...
    @property
    def measures(self) -> tuple[str, ...]: ...
    @property
    def samples(self) -> bool: ...
    @property
    def prefixes(self) -> tuple[str, ...]: ...
    @property
    def position(self) -> Position: ...

    def folds(self) -> list[Fold]:
        """The folds: no test item has a part in its fit."""
        ...

    def measured(self, model: Any, fold: Fold, applied: Applied, seed: int, bos: bool | None) -> Measured:
        """All measures of the test items; `bos` as `prepend_bos` of `ot.collect`."""
        ...

    def record(self) -> dict[str, Any]:
        """What it is, in plain values: it must be the same for a folder to be resumed."""
        ...


def some(things: Sequence[Thing], limit: int | None, seed: int) -> list[Thing]:
    """At most `limit` of the things, drawn by `seed`, in their order. Raises ValueError for less than four."""
    if limit is not None and limit < len(things):
        order = torch.randperm(len(things), generator=torch.Generator().manual_seed(seed), device="cpu")
        things = [things[i] for i in sorted(order[:limit].tolist())]
    if len(things) < 4:
        raise ValueError(f"A benchmark needs four items or more, of which some are fitted on; got {len(things)}.")
    return list(things)


def halves(keys: Sequence[str], seed: int) -> list[tuple[list[int], list[int]]]:
    """Two folds, each (numbers to fit on, numbers to test on): things of one key, its case and spaces aside, are on one
    side. Halved by scikit-learn's train_test_split, as in ODESteer's code. Raises ValueError where all have one key."""
    from sklearn.model_selection import train_test_split

    plain = [plain_key(key) for key in keys]
    numbers = {key: [] for key in dict.fromkeys(plain)}
    for i, key in enumerate(plain):
        numbers[key].append(i)
    if len(numbers) < 2:
        raise ValueError(f"Two folds need items that differ; all {len(keys)} have the same question or prompt.")
    one, other = train_test_split(list(numbers), test_size=0.5, random_state=seed)
    first, second = (sorted(i for key in side for i in numbers[key]) for side in (one, other))
    return [(first, second), (second, first)]


def plain_key(text: str) -> str:
    """The text without differences of case and spaces."""
    return " ".join(text.lower().split())


def digest_of(things: Any) -> str:
    """Of things that their repr tells apart."""
    return hashlib.sha256(repr(things).encode()).hexdigest()[:16]
