"""What the reports say while they work: a line to standard error for each stage, and how long the rest may take."""

import sys
import time
from collections.abc import Callable

Say = Callable[[str], None]


def stages() -> Say:
    """A function that prints a stage as it begins, with the seconds since `stages()`."""
    start = time.perf_counter()

    def say(stage: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {stage}", file=sys.stderr, flush=True)

    return say


def counted(say: Say, total: int) -> Say:
    """A function that says which of `total` rows begins, and the time that the rest takes at the mean of those that are
    done."""
    begun: list[float] = []

    def row(name: str) -> None:
        begun.append(time.perf_counter())
        done = len(begun) - 1
        left = f", about {(begun[-1] - begun[0]) / done * (total - done):.0f} s to go" if 0 < done < total else ""
        say(f"{name} ({done + 1} of {total}{left})")

    return row
