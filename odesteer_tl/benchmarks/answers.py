"""Teacher-forced log-probabilities of given answers after their prompts, steered or not.

log p(answer | prompt) = Σ log p(token | all before it) over the answer's tokens: a sum, not a mean, so that longer
answers are less likely. Prompt and answer are one text to the tokenizer; the answer's tokens are those after as many as
the prompt alone has, as in lm-evaluation-harness (`TemplateLM._encode_pair`, 0.4.13).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.shared_prefix import SharedPrefix, are_close, shared_prefix
from odesteer_tl.backends.steer import steering
from odesteer_tl.backends.token_tree import TokenTree
from odesteer_tl.backends.tokenize import check_context, common_prefix, left_padded, tokenise
from odesteer_tl.benchmarks.applied import UNCHANGED, Applied

BATCH = 32
"""Answers that share a forward pass."""


@dataclass(frozen=True)
class Question:
    """A `prompt` and the `answers` that may follow it, each with the space that it begins with."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """The answers of one question: `sums` of log p in nats, and how many `tokens` each has."""

    sums: Float[Tensor, " answers"]
    tokens: Int[Tensor, " answers"]


class AnswerScorer:
    """Scores answers with one model. What questions and answers begin with alike is computed once, where the model
    allows it: see `backends.shared_prefix`."""

    def __init__(self, model: Any, prepend_bos: bool | None = None, batch_size: int = BATCH, share: bool = True):
        self.model, self.prepend_bos, self.batch_size = model, prepend_bos, batch_size
        self._shared: SharedPrefix | None = shared_prefix(model) if share else None

    @torch.no_grad()
    def scores(self, questions: Sequence[Question], applied: Applied = UNCHANGED) -> list[AnswerScores]:
        """One `AnswerScores` per question. Raises ValueError for a question without answers, an answer without
        tokens, and texts longer than the model's context; and as `steering` does."""
        tokens = [self._tokens(question, applied) for question in questions]
        shared = None if _has_value_per_answer(applied) else self._shared
        if shared is not None and tokens:
            unsteered = not applied.methods or applied.positions in ("decoding", "generated")
            shared.hold(_beginning([start for start, _ in tokens]) if unsteered else [])
            shared = shared if self._is_right(shared, tokens) else None
        return [self._of(number, *each, applied, shared) for number, each in enumerate(tokens)]

    def _of(
        self, number: int, start: list[int], answers: list[list[int]], applied: Applied, shared: SharedPrefix | None
    ) -> AnswerScores:
        # an answer's last token predicts nothing; it is run where it may be the only one that is steered
        end = None if applied.methods and applied.positions != "decoding" else -1
        sums = []
        for first in range(0, len(answers), self.batch_size):
            part = answers[first : first + self.batch_size]
            with self._steered(number, applied, len(start)):
                logits = self._logits(start, part, end, shared)
            sums += [sum_of(own, answer) for own, answer in zip(logits, part, strict=True)]
        counts = torch.tensor([len(answer) for answer in answers], device="cpu")
        return AnswerScores(torch.tensor(sums, dtype=torch.float64, device="cpu"), counts)

    def _logits(
        self, start: list[int], answers: list[list[int]], end: int | None, shared: SharedPrefix | None
    ) -> list[Float[Tensor, "pos d_vocab"]]:
        """Of each answer, those that predict its tokens. In a tree answers are run up to their `end`."""
        if shared is None:
            whole = left_padded([start + answer for answer in answers], filler=0)
            logits = backend_of(self.model).logits(self.model, whole)
            return [logits[i, -1 - len(answer) : -1] for i, answer in enumerate(answers)]
        rest = start[len(shared.tokens) :]
        tree = TokenTree.of([[*rest, *answer[:end]] for answer in answers])
        logits, first = shared.logits(tree), len(rest) - 1
        return [logits[path[first : first + len(answer)]] for path, answer in zip(tree.paths, answers, strict=True)]

    def _is_right(self, shared: SharedPrefix, tokens: list[tuple[list[int], list[list[int]]]]) -> bool:
        """Whether the longest answer gets the logits that it has as a whole: hooks of the user's own may count
        columns."""
        texts = ((start, answer) for start, answers in tokens for answer in answers)
        start, answer = max(texts, key=lambda text: len(text[0]) + len(text[1]))
        ((one,), (other,)) = (self._logits(start, [answer], None, each) for each in (shared, None))
        return are_close(self.model, one, other)

    def _tokens(self, question: Question, applied: Applied) -> tuple[list[int], list[list[int]]]:
        """The tokens of the prompt, and of each answer."""
        if not question.answers:
            raise ValueError(f"A question needs answers to be scored; {question.prompt!r} has none.")
        prompt = applied.prompt(question.prompt)
        texts = tokenise(self.model, [prompt, *(prompt + a for a in question.answers)], prepend_bos=self.prepend_bos)
        start, *wholes = [row[mask].tolist() for row, mask in zip(*texts, strict=True)]
        answers = [whole[len(start) :] for whole in wholes]
        for text, answer in zip(question.answers, answers, strict=True):
            if not answer:
                raise ValueError(f"The answer {text!r} to {question.prompt!r} has no tokens of its own: leave it out.")
        check_context(self.model, left_padded(wholes, filler=0))
        return start, answers

    def _steered(self, number: int, applied: Applied, length: int) -> Any:
        pairs = applied.on(number)
        if not pairs:
            return nullcontext()
        return steering(self.model, pairs, positions=applied.positions, prompt_lengths=length)


def sum_of(logits: Float[Tensor, "pos d_vocab"], tokens: list[int]) -> float:
    """Σ log softmax(logits)[token], in nats."""
    own = logits.double()
    chosen = own.gather(1, torch.tensor(tokens, device="cpu").unsqueeze(1)).squeeze(1)
    return float((chosen - own.logsumexp(-1)).sum())


def _has_value_per_answer(applied: Applied) -> bool:
    """Whether a strength, or a mask of positions, has one row per answer: in a tree answers are no rows."""
    per_row = isinstance(applied.positions, Tensor) and applied.positions.ndim == 2
    return per_row or (applied.strength is not None and applied.strength.rows is not None)


def _beginning(starts: list[list[int]]) -> list[int]:
    """What all begin with, without the last token of any, from which on tokens are steered."""
    first = starts[0]
    return first[: min(common_prefix(first[:-1], start[:-1]) for start in starts)]
