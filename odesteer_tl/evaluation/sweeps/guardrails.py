"""What is measured of a cell, and the bounds that it must keep.

Measures of the continuations of one cell: `kl` and `kl_p95`, KL(unsteered ‖ steered) in nats per token, mean and 95 %
quantile; `perplexity_ratio` under the unsteered model, over that of its own texts; `distinct2` (Dist-2); `repetition`,
the mean over texts of the share of their three-word runs that stood in the same text before; `length`, mean words per
text; `informativeness`, the share of texts that say something; `unrelated_kl`, the KL on unrelated prompts;
`tokens_per_second`, measured where it is bounded alone, as a clock gives no figure twice; and any function of texts
that returns one number.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from odesteer_tl.evaluation.metrics import distinct

MEASURES = ("kl", "kl_p95", "perplexity_ratio", "distinct2", "repetition", "length", "informativeness")
"""What is measured of every cell."""
SPEED = "tokens_per_second"
"""Generated tokens over the seconds that `ot.generate` took for them."""
SAYING, CONTENT = 3, 4
"""A text says something from so many different words on, each of at least so many letters."""
NON_ANSWERS = (
    "i don't know", "i do not know", "i'm not sure", "i am not sure", "no comment", "i cannot say", "i can't say",
    "i have no idea", "i have no opinion", "it depends", "as an ai",
)  # fmt: skip
"""Beginnings of answers that say nothing, in English."""
Bounds = Mapping[str, tuple[float | None, float | None]]
"""By measure: the least and the largest value that is allowed; None for no bound."""
Metric = Callable[[Sequence[str]], float]
GUARDRAILS: Bounds = {"kl": (None, 1.0), "perplexity_ratio": (0.5, 2.0)}
"""The default: a start, to be set to the study. A low ratio is a text that repeats itself."""


def repetition(texts: Sequence[str]) -> float:
    """1 − Dist-3 within each text, averaged over texts of at least three words; 0 where there is none."""
    long = [text for text in texts if len(text.split()) >= 3]
    return fmean(1 - distinct([text], 3) for text in long) if long else 0.0


def length(texts: Sequence[str]) -> float:
    """Mean number of whitespace words."""
    return fmean(len(text.split()) for text in texts)


def informativeness(texts: Sequence[str]) -> float:
    """The share of texts that say something: at least `SAYING` different words of `CONTENT` letters, and no beginning
    among `NON_ANSWERS`. A count of words, no judgement: what the words say is for a judge, given as a metric."""
    return fmean(map(_says_something, texts))


def _says_something(text: str) -> bool:
    plain = " ".join(text.casefold().replace("’", "'").split())
    words = {word for word in re.findall(r"[^\W\d_]+", plain) if len(word) >= CONTENT}
    return len(words) >= SAYING and not plain.startswith(NON_ANSWERS)


def number_of(name: str, metric: Metric, texts: Sequence[str]) -> float:
    """metric(texts) as one number. Raises ValueError where it is none."""
    found: Any = metric(list(texts))
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"The metric {name!r} takes a list of texts and returns one number; got {found!r}.") from None


def checked_bounds(bounds: Any, measures: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
    """The bounds as (low, high). Raises ValueError for an unknown measure, no pair, and a pair that allows nothing."""
    if not isinstance(bounds, Mapping):
        raise ValueError(f'guardrails is a dict such as {{"kl": (None, 1.0)}}; got {bounds!r}.')
    for name, pair in bounds.items():
        if name not in measures:
            raise ValueError(f"There is no measure {name!r} to bound: take one of {', '.join(measures)}.")
        good = isinstance(pair, (tuple, list)) and len(pair) == 2
        numbers = [end for end in pair if end is not None] if good else []
        real = all(
            isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end) for end in numbers
        )
        if not good or not real or not numbers or (len(numbers) == 2 and numbers[0] > numbers[1]):
            raise ValueError(
                f"The bounds of {name!r} are (low, high), None for no bound, as (None, 1.0); got {pair!r}."
            )
    return {name: (pair[0], pair[1]) for name, pair in bounds.items()}


def broken(measures: Mapping[str, float | None], bounds: Bounds) -> tuple[str, ...]:
    """The bounds that are broken, in words. A measure that is no finite number breaks every bound."""
    said = []
    for name, (low, high) in bounds.items():
        value = measures[name]
        if value is None:
            said.append(f"{name} is not finite")
        elif low is not None and value < low:
            said.append(f"{name} {value:.3g} < {low:g}")
        elif high is not None and value > high:
            said.append(f"{name} {value:.3g} > {high:g}")
    return tuple(said)


def bounds_text(bounds: Bounds) -> list[str]:
    """A line per guardrail, as `kl ≤ 1`."""
    return [
        " ≤ ".join([*([] if low is None else [f"{low:g}"]), name, *([] if high is None else [f"{high:g}"])])
        for name, (low, high) in bounds.items()
    ]
