"""Which written pairs are kept, and why others are not."""

import re
from collections.abc import Sequence

from odesteer_tl.evaluation.data_check.near_duplicates import NEAR, near, normal, shingles

EMPTY, SAME, ECHO, AGAIN = "empty", "the same on both sides", "repeats its prompt", "written before"


def fresh(questions: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """The questions that are no near-duplicates of an earlier one, nor of those `known`."""
    texts = [*known, *questions]
    later = {b for _, b in near(texts)} if texts else set()
    return [text for number, text in enumerate(texts) if number >= len(known) and number not in later]


def why_dropped(answers: Sequence[tuple[str, str]], prompts: Sequence[tuple[str, str]]) -> list[str | None]:
    """For each pair of answers None, or why it is dropped: a side without a word; sides that are near-duplicates; an
    answer whose shingles stand in its prompt; one that a kept pair has already, on either side."""
    texts = [text for pair in answers for text in pair]
    alike: dict[int, set[int]] = {}
    for a, b in near(texts) if texts else ():
        alike.setdefault(b, set()).add(a)
    found: list[str | None] = []
    kept: set[int] = set()
    for number, (pair, asked) in enumerate(zip(answers, prompts, strict=True)):
        own = 2 * number, 2 * number + 1
        if not all(re.search(r"\w", text) for text in pair):
            found.append(EMPTY)
        elif own[0] in alike.get(own[1], ()):
            found.append(SAME)
        elif any(map(_echoes, pair, asked)):
            found.append(ECHO)
        elif any(alike.get(one, set()) & kept for one in own):
            found.append(AGAIN)
        else:
            found.append(None)
            kept.update(own)
    return found


def _echoes(answer: str, prompt: str) -> bool:
    own = shingles(answer)
    return len(normal(answer)) > 20 and len(own & shingles(prompt)) >= NEAR * len(own)
