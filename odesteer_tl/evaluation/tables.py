"""A comparison, printed as tables, as JSON or as a picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from odesteer_tl.evaluation.comparison_plots import plot_comparison
from odesteer_tl.evaluation.results import MARKS, ComparedRow, spread
from odesteer_tl.evaluation.runs import Run


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows in their order, and the names of rows that were left out, with the reasons. `place`: where the methods
    were fitted and, if that was found by the data, why."""

    rows: tuple[ComparedRow, ...]
    left_out: dict[str, str]
    place: str = ""

    def __str__(self) -> str:
        return self.table()

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets of KL, in nats, at which texts were generated."""
        return tuple(dict.fromkeys(budget for row in self.rows for budget in row.budgets))

    def row(self, name: str) -> ComparedRow:
        """The row of that name. Raises KeyError where there is none."""
        return {row.name: row for row in self.rows}[name]

    def table(self, names: Sequence[str] | None = None) -> str:
        """The table of texts for each budget, if any were generated, and the table of checks on activations; all rows
        or `names`."""
        rows = [row for row in self.rows if names is None or row.name in names]
        blocks = [f"At {budget:g} nats of KL:\n{texts_table(rows, budget)}" for budget in self.budgets]
        if any(row.conditions is not None for row in rows):
            blocks.append(conditions_table(rows))
        notes = marks_in(blocks)
        notes += [f"Left out: {name}, as {reason}." for name, reason in self.left_out.items()]
        return "\n\n".join([*blocks, *(["\n".join(map(wrapped, notes))] if notes else [])])

    def as_json(self) -> dict[str, Any]:
        """The rows as plain values: a run per seed and budget, without continuations and judgements."""
        return {"place": self.place, "rows": [_plain_row(row) for row in self.rows], "left_out": self.left_out}

    def plot(self, file: str | Path, title: str = "") -> None:
        """Write a PNG: gain and cost of each row at the first budget, and the AUC of its h."""
        plot_comparison(self.rows, file, title)


def texts_table(rows: Sequence[ComparedRow], budget: float) -> str:
    """A line per row with texts: the strength of the first seed, then mean ± sd over the seeds; of one seed, shares
    with a 95 % bootstrap over prompts."""
    lines = [
        f"{'':<20}{'strength':>10} {'KL':>13} {'moved':>7} {'desired %':>19} {'shift, points':>20} {'ppl ratio':>13} "
        f"{'Dist-1':>13} {'Dist-2':>13} {'Dist-3':>13} {'tokens/s':>9}"
    ]
    for row in (row for row in rows if row.runs):
        runs = row.at(budget)
        run = runs[0]
        moved = "" if run.displacement is None else f"{run.displacement:.3f}"
        figures = [spread(*row.over_seeds(name, budget), digits=3) for name in ("distinct1", "distinct2", "distinct3")]
        title = row.name + row.mark(budget)
        lines.append(
            f"{title:<20}{_strength(run):>10} {spread(*row.over_seeds('kl', budget), digits=3):>13} "
            f"{moved:>7} {_points(row, 'share', budget):>19} {_points(row, 'shift', budget, '+'):>20} "
            f"{spread(*row.over_seeds('perplexity_ratio', budget), digits=2):>13} {figures[0]:>13} {figures[1]:>13} "
            f"{figures[2]:>13} {max(run.tokens_per_second for run in runs):>9.0f}"
        )
    return "\n".join(lines)


def budgets_table(comparison: Comparison) -> str:
    """Gain and cost of every row at each budget: the share of continuations judged desired, in %, and the perplexity
    ratio."""
    budgets = comparison.budgets
    lines = [f"{'desired %, ppl ratio':<20}" + "".join(f"{f'{budget:g} nats':>16}" for budget in budgets)]
    for row in comparison.rows:
        cells = []
        for budget in budgets:
            share, ratio = row.over_seeds("share", budget)[0], row.over_seeds("perplexity_ratio", budget)[0]
            cells.append(f"{f'{100 * share:.1f}, {ratio:.2f}{row.mark(budget)}':>16}")
        lines.append(f"{row.name:<20}{''.join(cells)}")
    return "\n".join(lines)


def _points(row: ComparedRow, name: Any, budget: float, sign: str = "") -> str:
    runs = row.at(budget)
    if len(runs) > 1:
        return spread(*row.over_seeds(name, budget), scale=100, sign=sign)
    low, high = getattr(runs[0], f"{name}_interval")
    return f"{100 * getattr(runs[0], name):{sign}z.1f} [{100 * low:{sign}z.1f}, {100 * high:{sign}z.1f}]"


def _strength(run: Run) -> str:
    level = run.level
    if level is None:
        return "0"
    if level.prefix:
        return "prompt"
    return f"{level.T:.4g}" if level.relative_T is None else f"{level.relative_T:.3g} ‖a‖"


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
        title = row.name if c.reached else f"{row.name} ‡"
        lines.append(
            f"{title:<20}{row.fitted_on:>10} {c.T:>8.4g} {c.displacement:>7.3f} {auc:>9} {h:>17} "
            f"{rising:>8} {inside:>6} {c.norm_ratio:>11.3f} {f'{c.angle:.1f}°':>7} {seconds:>7}"
        )
    return "\n".join(lines)


def marks_in(blocks: Sequence[str]) -> list[str]:
    """What the marks in these tables mean, a sentence each."""
    return [f"{mark} {text}." for mark, text in MARKS.items() if any(mark in block for block in blocks)]


def wrapped(text: str) -> str:
    """The text in lines of at most 118 characters."""
    return textwrap.fill(text, width=118, subsequent_indent="  ")


def _plain_row(row: ComparedRow) -> dict[str, Any]:
    runs = [
        {f.name: getattr(run, f.name) for f in fields(run) if f.name not in ("desired", "continuations", "level")}
        | {"level": None if run.level is None else vars(run.level)}
        for run in row.runs
    ]
    return {
        "name": row.name,
        "fitted_on": row.fitted_on,
        "seconds": row.seconds,
        "conditions": None if row.conditions is None else vars(row.conditions),
        "runs": runs,
    }
