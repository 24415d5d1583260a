"""Judges: functions from texts to one score each. Any callable will do; these are keyword lists, and the door for all.

A judge of toxicity or of a behaviour gives probabilities, a reward model any finite numbers. What a judge is stands
under the table and must be the same for a folder to be resumed: its own `record()`, or else its code and what it holds.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.benchmarks.benchmark import digest_of
from odesteer_tl.evaluation.judge import Judge as LogisticJudge
from odesteer_tl.evaluation.sweeps.fingerprints import fingerprint
from odesteer_tl.evaluation.text_judge import fitted_judge

Judge = Callable[[Sequence[str]], Float[Tensor, " n"]]
"""Texts to scores."""
UNREAD = "cannot be compared"
"""Of what a judge holds, in its record."""


@dataclass(frozen=True)
class KeywordJudge:
    """1.0 where a text holds one of the `words`, as whole words, whatever their case; else 0.0."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.words, str) or not self.words or not all(self.words):
            raise ValueError(f"A keyword judge needs words, such as ('great', 'good'); got {self.words!r}.")

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, " n"]:
        found = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, self.words))})(?!\w)", re.IGNORECASE)
        return torch.tensor([float(bool(found.search(text))) for text in texts], dtype=torch.float64, device="cpu")

    def record(self) -> dict[str, Any]:
        """In plain values."""
        return {"judge": "keywords", "words": list(self.words)}


@dataclass(frozen=True, eq=False)
class WordJudge:
    """P(first side | text) by logistic regression on words and pairs of words; `accuracy` on held-out texts.
    `fitted_to`: a digest of the texts of both sides: the last digits of the coefficients differ with the number of
    threads."""

    of: LogisticJudge
    accuracy: float
    fitted_to: str

    @classmethod
    def fit(cls, yes: Sequence[str], no: Sequence[str], seed: int = 0) -> "WordJudge":
        """Fitted to texts of both sides, as toxic and other ones. Raises ValueError as `fitted_judge` does."""
        yes, no = list(yes), list(no)
        return cls(*fitted_judge(yes, no, seed), digest_of((yes, no, seed)))

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, " n"]:
        return self.of.positive_probability(list(texts))

    def record(self) -> dict[str, Any]:
        """In plain values."""
        said = f"logistic on words of {self.of.trained_on}, right for {100 * self.accuracy:.0f} % of held-out texts"
        return {"judge": said, "digest": self.fitted_to}


def judged(judge: Judge, texts: Sequence[str], probabilities: bool = False) -> Float[Tensor, " n"]:
    """The scores, on the CPU in float64. Raises ValueError where the judge does not give one finite number per text,
    or, with `probabilities`, one from 0 to 1."""
    found: Any = judge(list(texts))
    try:
        scores = torch.as_tensor(found, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        scores = torch.empty(0, device="cpu")
    good = scores.shape == (len(texts),) and bool(scores.isfinite().all())
    if not good or (probabilities and not bool(((scores >= 0) & (scores <= 1)).all())):
        what = "probability, from 0 to 1," if probabilities else "finite number"
        raise ValueError(f"A judge gives one {what} for each of {len(texts)} texts; got {found!r:.200}.")
    return scores


def judge_record(judge: Judge | None) -> Any:
    """What a judge is, in plain values; None for none."""
    if judge is None:
        return None
    own = getattr(judge, "record", None)
    if callable(own):
        return own()
    parts, unread = fingerprint(judge)
    return parts | ({UNREAD: unread} if unread else {})
