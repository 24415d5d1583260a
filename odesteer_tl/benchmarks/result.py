"""The result of a benchmark: rows with intervals over items, as a Markdown table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from odesteer_tl.benchmarks.benchmark import Benchmark
from odesteer_tl.evaluation.continuations import UNSTEERED
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.evaluation.metrics import bootstrap_interval

RANDOM = "random direction"
RESULT, TABLE = "result.json", "table.md"


@dataclass(frozen=True)
class BenchmarkRow:
    """A row at one `level`, empty for the unsteered model. `scores`: by measure one number per test item, folds one
    after the other, the mean over `seeds`; `by_seed`: by measure the mean over items under each seed. `kl`: its cost on
    the test side, in nats, mean over folds and seeds; `at`: place and strength of each fold under the first seed;
    `reached`: whether all strengths spend the budget; `guardrails`: means, None where one is not finite."""

    name: str
    level: str
    seeds: int
    scores: dict[str, list[float]]
    by_seed: dict[str, list[float]]
    kl: float
    at: list[dict[str, Any]]
    reached: bool
    guardrails: dict[str, float | None]

    def mean(self, measure: str) -> float:
        """Over items."""
        return fmean(self.scores[measure])

    def minus(self, other: "BenchmarkRow", measure: str) -> tuple[float, float, float]:
        """The mean difference of the items' scores, and its 95 % interval: paired bootstrap over items, 2000 draws."""
        pairs = zip(self.scores[measure], other.scores[measure], strict=True)
        differences = torch.tensor([[a - b] for a, b in pairs], dtype=torch.float64, device="cpu")
        return float(differences.mean()), *bootstrap_interval(differences)


@dataclass(frozen=True)
class BenchmarkResult:
    """The `rows`, the unsteered model first, and the `protocol`: benchmark, model, rows' functions, settings, versions.
    `str` prints the table with what it was measured with."""

    measures: tuple[str, ...]
    primary: str
    protocol: dict[str, Any]
    rows: tuple[BenchmarkRow, ...]

    def row(self, name: str, level: str | None = None) -> BenchmarkRow:
        """The row of that name, at that level or at its first. Raises KeyError where there is none."""
        found = [row for row in self.rows if row.name == name and level in (None, row.level)]
        if not found:
            raise KeyError(
                f"There is no row {name!r} at {level!r}; rows: {[(one.name, one.level) for one in self.rows]}."
            )
        return found[0]

    def table(self) -> str:
        """All rows in Markdown: means, differences from the unsteered model with 95 % intervals, and of the primary
        measure from the random direction at the same level."""
        guards = [*self.rows[0].guardrails]
        random = {row.level: row for row in self.rows if row.name == RANDOM}
        head = ["row", "at", "strength", "KL"]
        for measure in self.measures:
            head += [measure, f"{measure} − unsteered"]
        head += [f"{self.primary} − random"] * bool(random) + guards
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in self.rows:
            cells = [row.name, row.level + " †" * (not row.reached), _strengths(row), f"{row.kl:.3f}"]
            for measure in self.measures:
                spread = f" ± {stdev(row.by_seed[measure]):.3f}" if row.seeds > 1 else ""
                steered = row.name != UNSTEERED
                cells += [
                    f"{row.mean(measure):.3f}{spread}",
                    _signed(row.minus(self.rows[0], measure)) if steered else "",
                ]
            if random:
                other = random.get(row.level)
                cells.append(_signed(row.minus(other, self.primary)) if other and other is not row else "")
            cells += ["" if (one := row.guardrails.get(name)) is None else f"{one:.3f}" for name in guards]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def notes(self) -> str:
        """What the table was measured with."""
        own, several = self.protocol, len(self.protocol["seeds"]) > 1
        model, benchmark = own["model"], dict(own["benchmark"])
        place = f"layer {own['layer']}, position {own['position']}" if own["layer"] is not None else (
            "place chosen on the fit side by choose_layer for CAA: "
            + ", ".join(sorted({f"layer {at['layer']}, {at['position']}" for row in self.rows for at in row.at}))
        )  # fmt: skip
        said = [
            f"Model: {model['name']}, revision {model['revision'] or 'not recorded'}, {model['dtype']}, "
            f"{model['device']}, weights {model['weights']}; BOS: {_bos(own['prepend_bos'])}.",
            f"Benchmark: {_said(benchmark)}.",
            f"Fitted at {place}. KL in nats per token on greedy continuations of {_span(own['prompts_found'])} "
            f"prompts, {own['max_new_tokens']} tokens each: found on the fit side, shown for the test side.",
            "Intervals: 95 %, paired bootstrap over test items (2000 draws)"
            + ("; ± the standard deviation over seeds" if several else "; seed")
            + f" {', '.join(map(str, own['seeds']))} where chance plays a part.",
            "Versions: " + ", ".join(f"{name} {number}" for name, number in own["versions"].items()) + ".",
        ]
        before = [name for name, row in own["rows"].items() if row["on"] == "elsewhere"]
        if before:
            said.append(
                f"Fitted before this run, maybe on these items, and not anew on each fold: {', '.join(before)}."
            )
        if any(not row.reached for row in self.rows):
            said.append("†: under some seed or fold nothing spends the budget; the nearest was taken, see KL.")
        return "\n".join(f"- {line}" for line in said)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.notes()}"

    def to_json(self) -> str:
        """Protocol and rows with every item's scores."""
        rows = []
        for row in self.rows:
            shown = {
                one: {"mean": row.mean(one), "minus_unsteered": row.minus(self.rows[0], one)} for one in self.measures
            }
            rows.append(asdict(row) | {"measures": shown})
        return json_text({"protocol": self.protocol, "primary": self.primary, "rows": rows})

    def write(self, folder: str | Path) -> None:
        """Write result.json and table.md into a folder."""
        (Path(folder) / RESULT).write_text(self.to_json() + "\n", encoding="utf-8")
        (Path(folder) / TABLE).write_text(f"{self}\n", encoding="utf-8")


def result_of(
    benchmark: Benchmark, protocol: dict[str, Any], cells: Sequence[dict[str, Any]], folds: int
) -> BenchmarkResult:
    """The rows of finished cells."""
    names = dict.fromkeys((cell["row"], cell["level"]) for cell in cells)
    rows = [
        _row(name, level, [one for one in cells if (one["row"], one["level"]) == (name, level)], benchmark, folds)
        for name, level in names
    ]
    return BenchmarkResult(tuple(benchmark.measures), benchmark.primary, protocol, tuple(rows))


def _row(name: str, level: str, cells: list[dict[str, Any]], benchmark: Benchmark, folds: int) -> BenchmarkRow:
    seeds = [*dict.fromkeys(cell["seed"] for cell in cells)]
    by = {(cell["fold"], cell["seed"]): cell for cell in cells}
    scores, by_seed = {}, {}
    for measure in benchmark.measures:
        of = [[score for fold in range(folds) for score in by[fold, seed]["scores"][measure]] for seed in seeds]
        scores[measure] = [fmean(item) for item in zip(*of, strict=True)]
        by_seed[measure] = [fmean(own) for own in of]
    guards = {}
    for guard in cells[0]["guardrails"]:
        values = [cell["guardrails"][guard] for cell in cells]
        guards[guard] = None if None in values else fmean(values)
    first = [by[fold, seeds[0]]["at"] for fold in range(folds)]
    reached = all(cell["at"].get("reached", True) for cell in cells)
    kl = fmean(cell["kl"] for cell in cells)
    return BenchmarkRow(name, level, len(seeds), scores, by_seed, kl, [at for at in first if at], reached, guards)


def _strengths(row: BenchmarkRow) -> str:
    """Of each fold, under the first seed."""
    said = []
    for at in row.at:
        if at["prefix"]:
            said.append(f"“{at['prefix'][:24]}…”" if len(at["prefix"]) > 25 else f"“{at['prefix']}”")
        else:
            said.append(f"{at['T']:.3g}" if at["relative_T"] is None else f"{at['relative_T']:.3g} ‖a‖")
    return ", ".join(dict.fromkeys(said))


def _signed(difference: tuple[float, float, float]) -> str:
    mean, low, high = difference
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _said(tree: dict[str, Any]) -> str:
    """A record in words; digests are in the JSON."""
    parts = [
        f"{name}: ({_said(value)})" if isinstance(value, dict) else f"{name}: {value!r}" if name == "template"
        else f"{name}: {value}" for name, value in tree.items() if value not in (None, "") and name != "digest"
    ]  # fmt: skip
    return "; ".join(parts)


def _span(counts: Sequence[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))


def _bos(given: bool | None) -> str:
    return "as the library has it" if given is None else "before each text" if given else "none"
