"""The questions of a contrast: given, written by the writer, or those that come with the package."""

import warnings
from collections.abc import Sequence
from typing import Any

from odesteer_tl.evaluation.contrasts.axis import Axis
from odesteer_tl.evaluation.contrasts.everyday_questions import QUESTIONS
from odesteer_tl.evaluation.contrasts.kept_pairs import fresh
from odesteer_tl.evaluation.contrasts.templates import question_prompt
from odesteer_tl.evaluation.contrasts.writers import Writer, written

ROUNDS = 8
"""How often a writer is asked for the questions that are still missing."""
MOST_QUESTIONS = 10_000


def questions_of(
    given: Any, axis: Axis, write: Writer, batch_size: int, progress: bool | None, known: Sequence[str]
) -> list[str]:
    """What is asked: questions without near-duplicates, and none of `known`. Raises ValueError for fewer than two."""
    if isinstance(given, int) and not isinstance(given, bool):
        found = _written_questions(given, axis, write, batch_size, progress, known)
    else:
        lines: Any = QUESTIONS if given is None else given
        if isinstance(lines, (str, bool)) or not all(isinstance(one, str) for one in lines):
            raise ValueError(f"questions is a list of texts, or how many shall be written; got {given!r}.")
        found = fresh([" ".join(one.split()) for one in lines if one.strip()], known)
    if len(found) < 2:
        raise ValueError(f"Pairs need at least two different questions; got {len(found)}: give more in questions=.")
    return found


def _written_questions(
    count: int, axis: Axis, write: Writer, batch_size: int, progress: bool | None, known: Sequence[str]
) -> list[str]:
    if not 2 <= count <= MOST_QUESTIONS:
        raise ValueError(f"questions is a list, or a number from 2 to {MOST_QUESTIONS}; got {count}.")
    found: list[str] = []
    turn = 0
    for _ in range(ROUNDS):
        chats = [question_prompt(axis, turn + number) for number in range(count - len(found))]
        turn += len(chats)
        texts = written(write, chats, batch_size, "Writing questions", progress)
        new = [text.partition("?")[0].lstrip(" \"'-*0123456789.)") + "?" for text in texts if "?" in text]
        found += fresh([one for one in new if len(one.split()) >= 3], [*known, *found])
        if len(found) >= count:
            break
    else:
        warnings.warn(
            f"Of {turn} texts that were written for questions {len(found)} are questions of their own, and {count} "
            "were asked for: give questions= as a list.",
            stacklevel=4,
        )
    return found[:count]
