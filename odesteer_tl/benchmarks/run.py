"""Runs a benchmark: every row on every fold, at every strength and seed, cell by cell."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from odesteer_tl._shapes import Position
from odesteer_tl.benchmarks.applied import UNCHANGED
from odesteer_tl.benchmarks.baselines import baselines
from odesteer_tl.benchmarks.benchmark import Benchmark, Fold
from odesteer_tl.benchmarks.fold_work import FoldWork, Options, check_data
from odesteer_tl.benchmarks.judges import UNREAD
from odesteer_tl.benchmarks.result import BenchmarkResult, result_of
from odesteer_tl.data.tokens import reads_several
from odesteer_tl.evaluation.compare import budgets_of
from odesteer_tl.evaluation.continuations import UNSTEERED
from odesteer_tl.evaluation.entries import Entry, entry_of
from odesteer_tl.evaluation.sweeps.cells import Cells
from odesteer_tl.evaluation.sweeps.fingerprints import fingerprint
from odesteer_tl.evaluation.sweeps.plan import model_record, versions

KEY = ("row", "fold", "level", "seed")
"""What names a cell."""


def run(
    model: Any,
    benchmark: Benchmark,
    methods: Mapping[str, Any] | None = None,
    *,
    layer: int | None = None,
    position: Position | None = None,
    layers: Iterable[int] | None = None,
    kl: float | Sequence[float] = 0.3,
    T: float | Mapping[str, float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    prompts: int = 12,
    max_new_tokens: int = 24,
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> BenchmarkResult:
    """Every row of `methods` and the unsteered model, fitted on one side of each fold and tested on the other, at equal
    KL; with intervals over the test items, paired with the unsteered model.

        from odesteer_tl import benchmarks
        mc = benchmarks.TruthfulQAMC.read("TruthfulQA.csv", limit=100)
        found = benchmarks.run(model, mc, benchmarks.baselines(mc.prefixes) | {"mine": ot.HPR}, layer=14, out="mc")
        print(found)                                                  # the table; found.to_json() has every item

    `methods`: by name, as for `ot.compare`; None: `baselines(benchmark.prefixes)`. `layer`, `position`: where
    activations are read and steered; without a layer `choose_layer` finds the place for CAA on each fold's fit side,
    among `layers`; with one the position is the benchmark's own unless given. `kl`: the budgets, in nats of
    KL(unsteered ‖ steered) per token from the last prompt token on, on greedy continuations of `prompts` prompts of the
    fit side, as for `ot.calibrate`; the table says what the strength costs on as many prompts of the test side. `T`:
    also at this T, for all rows but prefixes, or by row, as {"ODESteer, ten steps": 5.0}. `seeds`: of fits that depend
    on chance, and of sampling; rows and benchmarks without either are run once. `prepend_bos` as for `ot.collect`, in
    all that the model reads.

    `out`: a folder. Each finished cell (row, fold, strength, seed) is a line there. The same call resumes, at the layer
    that was chosen before, and at the end result.json and table.md are written. Raises ValueError for no seeds, a row
    named "no steering", a T of no row or of prefixes, `layers` beside `layer`, rows that the data cannot fit, and a
    folder of another protocol, with the difference.
    """
    if isinstance(seeds, int) or not seeds or prompts < 1:
        raise ValueError(
            f"seeds is a sequence such as (0, 1, 2), and prompts a number above 0; got {seeds}, {prompts}."
        )
    if layer is not None and layers is not None:
        raise ValueError("Give a layer, or layers among which it is chosen, and not both.")
    if position is not None and reads_several(position):
        raise ValueError(f'position is "last", "mean" or an index, one token a text; got {position!r}.')
    given = baselines(benchmark.prefixes) if methods is None else methods
    if not isinstance(given, Mapping) or UNSTEERED in given:
        raise ValueError(f'methods is a dict by name, such as {{"CAA": ot.CAA}}, without {UNSTEERED!r}; got {given!r}.')
    entries = {name: entry_of(name, method) for name, method in given.items()}
    among = None if layers is None else tuple(sorted(set(layers)))
    where = benchmark.position if layer is not None and position is None else position
    options = Options(layer, where, among, budgets_of(kl), T, prompts, max_new_tokens, prepend_bos)
    with_T = [name for name, entry in entries.items() if not entry.prompted]
    no_T = [name for name in (T if isinstance(T, Mapping) else ()) if name not in with_T]
    if no_T or (T is not None and not with_T):
        raise ValueError(
            f"T is given for {', '.join(map(repr, no_T)) or 'these rows'}; the rows that have a T are "
            f"{', '.join(with_T) or 'none: prompts have no strength'}."
        )
    folds = benchmark.folds()
    for name, entry in entries.items():
        check_data(name, entry, folds[0])
    protocol, unread = _protocol(model, benchmark, entries, options, folds, seeds)
    rows = _Rows(model, benchmark, entries, options, folds, tuple(seeds), progress or (lambda said: None))
    with Cells(out, protocol, unread, KEY) as cells:
        found = rows.measured(cells)
    result = result_of(benchmark, protocol, found, len(folds))
    if out is not None:
        result.write(out)
    return result


class _Rows:
    """The rows in their order; a cell that the folder holds is not measured again."""

    def __init__(self, model: Any, benchmark: Benchmark, entries: Mapping[str, Entry], options: Options,
                 folds: list[Fold], seeds: tuple[int, ...], say: Callable[[str], None]) -> None:  # fmt: skip
        self.model, self.benchmark, self.entries, self.options = model, benchmark, entries, options
        self.seeds, self.say = seeds, say
        self.works = [FoldWork(model, fold, entries, options) for fold in folds]

    def measured(self, cells: Cells) -> list[dict[str, Any]]:
        """All cells, fold by fold, so that what a fold holds is made once."""
        asked = [
            (work, name, label, seed)
            for work in self.works
            for name in (UNSTEERED, *self.entries)
            for seed in self._seeds(name)
            for label in self._labels(name)
        ]
        found, seconds = [], list[float]()
        keys: list[dict[str, Any]] = [
            dict(zip(KEY, (name, work.fold.number, label, seed), strict=True)) for work, name, label, seed in asked
        ]
        for (work, *_), cell in zip(asked, map(cells.get, keys), strict=True):
            if cell is not None and cell["at"]:
                work.know(cell["at"]["layer"], cell["at"]["position"])
        for number, ((work, name, label, seed), key) in enumerate(zip(asked, keys, strict=True)):
            if cells.get(key) is None:
                rest = (len(asked) - number) * fmean(seconds) / 60 if seconds else None
                left = "" if rest is None else f", about {rest:.1f} min left"
                what = f"{name}, {label}" if label else name
                self.say(f"{what}, fold {work.fold.number}, seed {seed}: cell {number + 1} of {len(asked)}{left}")
                start = time.perf_counter()
                cells.add(key | self._cell(work, name, label, seed))
                seconds.append(time.perf_counter() - start)
            cell = cells.get(key)
            assert cell is not None  # it was added
            found.append(cell)
        return found

    def _seeds(self, name: str) -> tuple[int, ...]:
        chance = name != UNSTEERED and self.entries[name].by_chance
        return self.seeds if self.benchmark.samples or chance else self.seeds[:1]

    def _labels(self, name: str) -> list[str]:
        if name == UNSTEERED:
            return [""]
        labels = self.options.labels(name)
        return labels[: len(self.options.kl)] if self.entries[name].prompted else labels

    def _cell(self, work: FoldWork, name: str, label: str, seed: int) -> dict[str, Any]:
        at: dict[str, Any] = {}
        applied, kl = UNCHANGED, 0.0
        if name != UNSTEERED:
            applied, level = work.applied(name, label, seed)
            kl = work.cost(name, label, seed)
            at = {**work.place, "T": level.T, "relative_T": level.relative_T, "prefix": level.prefix,
                  "kl_fit": level.kl, "reached": level.reached}  # fmt: skip
        measured = self.benchmark.measured(self.model, work.fold, applied, seed, self.options.bos)
        bad = [one for one, own in measured.scores.items() if not all(map(math.isfinite, own))]
        if bad:
            raise ValueError(f"{name}, {label}: {', '.join(bad)} is not finite for some item.")
        return {"at": at, "kl": kl, "scores": measured.scores, "guardrails": measured.guardrails}


def _protocol(
    model: Any, benchmark: Benchmark, entries: Mapping[str, Entry], options: Options, folds: list[Fold],
    seeds: Sequence[int],
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """What must be the same for a folder to be resumed, as plain values, and what nothing here can compare."""
    of_model = model_record(model)
    prints = {name: fingerprint(entry.fit) for name, entry in entries.items()}
    T = dict(options.T) if isinstance(options.T, Mapping) else options.T
    record = {
        "format": 1,
        "benchmark": benchmark.record(),
        "model": of_model,
        "rows": {
            name: own | {"positions": str(entries[name].positions), "on": entries[name].on}
            for name, (own, _) in prints.items()
        },
        "layer": options.layer,
        "position": options.position,
        "layers": None if options.layers is None else list(options.layers),
        "kl": list(options.kl),
        "T": T,
        "seeds": list(seeds),
        "prompts": options.prompts,
        "prompts_found": sorted({options.count(own) for fold in folds for own in (fold.prompts, fold.test_prompts)}),
        "max_new_tokens": options.max_new_tokens,
        "prepend_bos": options.bos,
        "versions": versions(),
    }
    unread = [f"{part} of {name}" for name, (_, parts) in prints.items() for part in parts]
    for name in ("judge", "truth", "info"):
        judge = record["benchmark"].get(name)
        if isinstance(judge, dict):
            unread += [
                f"{part} of the {'judge' if name == 'judge' else f'judge {name}='}" for part in judge.get(UNREAD, ())
            ]
    return record, unread
