"""The walk upwards in strength, and when it stops: plain rules on finished rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from odesteer_tl.evaluation.sweeps.rows import IDLE, PATIENCE, SweptRow, improves


def walked(unsteered: SweptRow, strengths: Sequence[float], row_at: Callable[[float], SweptRow]) -> list[SweptRow]:
    """The rows at rising strengths until one breaks a guardrail, or the primary metric has not improved `PATIENCE`
    times in a row over the best one so far; the last row says why it is the last."""
    rows, best, idle = list[SweptRow](), unsteered, 0
    for strength in strengths:
        row = row_at(strength)
        improved = improves(row, best)
        best, idle = (row, 0) if improved else (best, idle + 1)
        stop = None
        if row.broken:
            stop = f"guardrail: {'; '.join(row.broken)}"
        elif idle == PATIENCE:
            stop = IDLE
        elif strength == strengths[-1]:
            stop = "last strength"
        rows.append(replace(row, stop=stop))
        if stop is not None:
            break
    return rows
