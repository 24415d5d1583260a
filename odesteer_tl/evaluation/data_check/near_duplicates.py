"""Texts that are the same, or nearly: the Jaccard index of their shingles, and what is one sample because of it.

Texts are compared in lower case and without punctuation, by the sets of all runs of five characters in them: of two
sets A and B it is |A ∩ B| / |A ∪ B| (Broder 1997), computed exactly and not by MinHash. From `NEAR` on they count as
near-duplicates: one changed word in a text of some thirty words.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

NEAR, SHINGLE = 0.8, 5
"""The Jaccard index from which two texts are near-duplicates, and the characters of a shingle."""
_ROWS = 256

Couples = set[tuple[int, int]]
"""Numbers of texts that belong together, the smaller one first."""


def normal(text: str) -> str:
    """In lower case, its words with one space between them; of a text without words the text."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def same(texts: Sequence[str]) -> Couples:
    """Texts that are the same in normal form: each with the first of them."""
    first: dict[str, int] = {}
    found = ((first.setdefault(normal(text), number), number) for number, text in enumerate(texts))
    return {couple for couple in found if couple[0] != couple[1]}


def near(texts: Sequence[str], threshold: float = NEAR) -> Couples:
    """All couples of texts whose Jaccard index is at least `threshold`, the same ones included."""
    import numpy as np
    from scipy.sparse import triu
    from sklearn.feature_extraction.text import CountVectorizer

    analyzer: Any = shingles  # typed as a string, and a function all the same
    table: Any = CountVectorizer(analyzer=analyzer, binary=True).fit_transform(texts)
    sizes, found = np.asarray(table.sum(1)).ravel(), set()
    for start in range(0, len(texts), _ROWS):
        both = triu(table[start : start + _ROWS] @ table.T, k=start + 1).tocoo()
        union = sizes[both.row + start] + sizes[both.col] - both.data
        kept = both.data >= threshold * union
        found |= {(int(a) + start, int(b)) for a, b in zip(both.row[kept], both.col[kept], strict=True)}
    return found


def units_of(count: int, couples: Iterable[tuple[int, int]]) -> list[int]:
    """For each text the number of its unit: texts that a chain of couples joins are one independent sample."""
    parent = list(range(count))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for a, b in couples:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(one) for one in range(count)]


def shingles(text: str) -> set[str]:
    """All runs of five characters in its normal form, or all of a shorter one."""
    plain = normal(text)
    return {plain[start : start + SHINGLE] for start in range(max(1, len(plain) - SHINGLE + 1))}
