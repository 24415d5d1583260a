"""Ratios of two calls timed side by side: what all scripts of this folder print, and how."""

import time
from collections.abc import Callable, Sequence
from statistics import median

Ratios = list[float]


def seconds(call: Callable[[], object], repeats: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """The mean of `repeats` calls in a row, in seconds of wall time, or of another clock."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def timed_in_turn(
    calls: Sequence[Callable[[], object]],
    runs: int,
    least: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds [run][call]: in each run every call once, next to the others; short calls are repeated for `least` s.

    Each call has been made before the first run. The order is turned round from run to run, so that none always
    follows the same other.
    """
    repeats = []
    for call in calls:
        call()
        repeats.append(max(1, round(least / max(seconds(call, 2), 1e-9))))
    found = []
    for run in range(runs):
        order = range(len(calls)) if run % 2 == 0 else reversed(range(len(calls)))
        took = {number: seconds(calls[number], repeats[number], clock) for number in order}
        found.append([took[number] for number in range(len(calls))])
    return found


def line(name: str, ratios: Ratios, more: str = "") -> str:
    """`name ratio (min–max) over N paired runs`, the ratio being the median."""
    told = f" | {more}" if more else ""
    return f"{name} {median(ratios):.3g} ({min(ratios):.3g}–{max(ratios):.3g}) over {len(ratios)} paired runs{told}"
