"""Counts of what was steered in the requests of a harness; none steered is an error, and is said."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import Logger
from typing import Any

SHOWN = 60
"""Characters of a request that are shown in a message."""


@dataclass
class Fired:
    """The requests answered with a method, `unsteered` of them with no token steered; `tokens` were, at each layer."""

    requests: int = 0
    unsteered: int = 0
    tokens: int = 0
    by_kind: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, kind: str, steered: Sequence[int], shown: Sequence[Any], positions: Any, log: Logger) -> None:
        """Count requests of a kind by how many tokens of each were `steered`. Those without any are logged as an error,
        with the first of `shown`: their answers are the unsteered model's."""
        missed = [text for count, text in zip(steered, shown, strict=True) if count == 0]
        self.requests += len(steered)
        self.unsteered += len(missed)
        self.tokens += sum(steered)
        of_kind = self.by_kind.setdefault(kind, {"requests": 0, "unsteered": 0, "tokens_steered": 0})
        for name, number in zip(of_kind, (len(steered), len(missed), sum(steered)), strict=True):
            of_kind[name] += number
        if missed:
            log.error(
                "%d of %d %s requests were answered with NO token steered (positions=%r): these answers are the "
                'unsteered model\'s, and the scores mix them in. The first: "%s". Give positions="decoding" or "all", '
                "or a task whose requests have such tokens.",
                len(missed), len(steered), kind, positions, str(missed[0])[-SHOWN:],
            )  # fmt: skip

    @property
    def described(self) -> dict[str, Any]:
        """In plain values, for the record of a run."""
        return {
            "requests": self.requests,
            "requests_without_steering": self.unsteered,
            "tokens_steered": self.tokens,
            "by_kind": self.by_kind,
        }
