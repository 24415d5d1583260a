"""Scores that several seeds or rows of a fold share, computed once."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from odesteer_tl.benchmarks.applied import Applied
from odesteer_tl.benchmarks.benchmark import Fold


class KeptScores:
    """By fold, which a run makes anew, so that nothing outlives the run."""

    def __init__(self) -> None:
        self._of_fold: WeakKeyDictionary[Fold, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()

    def of(self, fold: Fold, model: Any, applied: Applied, made: Callable[[], Any], *also: Any) -> Any:
        """`made()`, or what it gave for the same model, `applied` and `also`."""
        known, key = self._of_fold.setdefault(fold, {}), (id(model), *applied.key(), *also)
        if key not in known:
            known[key] = made(), model, applied.methods  # both are held, so that no other object gets their ids
        return known[key][0]
