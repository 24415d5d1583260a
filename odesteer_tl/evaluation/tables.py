"""A comparison, printed as two tables, as JSON or as a picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from odesteer_tl.evaluation.plots import plot_comparison
from odesteer_tl.evaluation.results import MARKS, ComparedRow, spread


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows in their order, and the names of rows that were left out, with the reasons."""

    rows: tuple[ComparedRow, ...]
    left_out: dict[str, str]

    def __str__(self) -> str:
        return self.table()

    def row(self, name: str) -> ComparedRow:
        """The row of that name. Raises KeyError where there is none."""
        return {row.name: row for row in self.rows}[name]

    def table(self, names: Sequence[str] | None = None) -> str:
        """The table of texts, if any were generated, and the table of checks on activations; all rows or `names`."""
        rows = [row for row in self.rows if names is None or row.name in names]
        blocks = [texts_table(rows)] if any(row.runs for row in rows) else []
        if any(row.conditions is not None for row in rows):
            blocks.append(conditions_table(rows))
        notes = [f"{mark} {text}." for mark, text in MARKS.items() if any(mark in row.title for row in rows)]
        notes += [f"Left out: {name}, as {reason}." for name, reason in self.left_out.items()]
        return "\n\n".join([*blocks, *(["\n".join(map(wrapped, notes))] if notes else [])])

    def as_json(self) -> dict[str, Any]:
        """The rows as plain values: a run per seed with its trials, without continuations and judgements."""
        return {"rows": [_plain_row(row) for row in self.rows], "left_out": self.left_out}

    def plot(self, file: str | Path, title: str = "") -> None:
        """Write a PNG: gain and cost of each row, and the AUC of its h."""
        plot_comparison(self.rows, file, title)


def texts_table(rows: Sequence[ComparedRow]) -> str:
    """A line per row with texts: strength, then mean ± sd over the seeds."""
    rows_with_texts = [row for row in rows if row.runs]
    lines = [
        f"{'':<20}{'T':>8} {'moved':>7} {'desired %':>13} {'shift, points':>14} {'ppl ratio':>13} "
        f"{'Dist-1':>13} {'Dist-2':>13} {'Dist-3':>13}"
    ]
    for row in rows_with_texts:
        run = row.typical
        strength = "prompt" if run.T is None else f"{run.T:.4g}"
        moved = "prompt" if run.displacement is None else f"{run.displacement:.3f}"
        figures = [spread(*row.over_seeds(name), digits=3) for name in ("distinct1", "distinct2", "distinct3")]
        lines.append(
            f"{row.title:<20}{strength:>8} {moved:>7} "
            f"{spread(*row.over_seeds('share'), scale=100):>13} "
            f"{spread(*row.over_seeds('shift'), scale=100, sign='+'):>14} "
            f"{spread(*row.over_seeds('perplexity_ratio'), digits=2):>13} {figures[0]:>13} {figures[1]:>13} "
            f"{figures[2]:>13}"
        )
    return "\n".join(lines)


def conditions_table(rows: Sequence[ComparedRow]) -> str:
    """A line per method, on held-out undesired activations; "no h" where a method has no barrier."""
    lines = [
        f"{'':<20}{'fitted on':>10} {'T':>8} {'moved':>7} {'AUC of h':>9} {'median h':>17} {'h rises':>8} "
        f"{'h ≥ 0':>6} {'‖a(T)‖/‖a‖':>11} {'angle':>7} {'fit, s':>7}"
    ]
    for row in rows:
        c = row.conditions
        if c is None:
            continue
        h = "no h" if c.h_along is None else f"{c.h_along[0]:+.2g} → {c.h_along[-1]:+.2g}"
        seconds = "given" if row.seconds is None else f"{row.seconds:.2f}"
        auc, rising, inside = ("no h" if x is None else f"{x:.2f}" for x in (c.auc, c.rising, c.inside))
        lines.append(
            f"{row.name:<20}{row.fitted_on:>10} {c.T:>8.4g} {c.displacement:>7.3f} {auc:>9} {h:>17} "
            f"{rising:>8} {inside:>6} {c.norm_ratio:>11.3f} {f'{c.angle:.1f}°':>7} {seconds:>7}"
        )
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """The text in lines of at most 118 characters."""
    return textwrap.fill(text, width=118, subsequent_indent="  ")


def _plain_row(row: ComparedRow) -> dict[str, Any]:
    runs = [
        {f.name: getattr(run, f.name) for f in fields(run) if f.name not in ("desired", "trials")}
        | {"trials": [vars(trial) for trial in run.trials]}
        for run in row.runs
    ]
    return {
        "name": row.name,
        "fitted_on": row.fitted_on,
        "seconds": row.seconds,
        "conditions": None if row.conditions is None else vars(row.conditions),
        "runs": runs,
    }
