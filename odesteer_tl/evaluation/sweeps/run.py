"""`ot.sweep`: screen all places, generate at the best, walk upwards in strength, stop, and resume."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypedDict, Unpack, overload

from odesteer_tl._shapes import Position
from odesteer_tl.evaluation.choose_layer import Place
from odesteer_tl.evaluation.continuations import UNSTEERED, Judge
from odesteer_tl.evaluation.engine import Engine
from odesteer_tl.evaluation.sweeps.ablated import ablated, ablated_place
from odesteer_tl.evaluation.sweeps.asked import asked
from odesteer_tl.evaluation.sweeps.cell_measures import HOLDS, At, Budget, CellMeasures
from odesteer_tl.evaluation.sweeps.cells import KEY, Cells, check_folder, check_same
from odesteer_tl.evaluation.sweeps.guardrails import GUARDRAILS, Bounds, Metric, broken
from odesteer_tl.evaluation.sweeps.places import read_places, screened
from odesteer_tl.evaluation.sweeps.plan import Plan
from odesteer_tl.evaluation.sweeps.result import Sweep, SweptRow
from odesteer_tl.evaluation.sweeps.walk import walked


class Options(TypedDict, total=False):
    """The options of `sweep` but for `dry_run`, which decides what it returns."""

    layers: Iterable[int] | None
    positions: Sequence[Position]
    strengths: Sequence[float] | Mapping[str, Sequence[float]]
    judge: Judge | None
    primary: str
    guardrails: Bounds
    metrics: Mapping[str, Metric] | None
    unrelated: Sequence[str]
    keep: int
    seeds: Sequence[int]
    samples: int
    max_new_tokens: int
    ablation: bool
    kl: float
    out: str | Path | None
    progress: Callable[[str], None] | None


@overload
def sweep(model: Any, data: Any, methods: Any, *, dry_run: Literal[True], **options: Unpack[Options]) -> Plan:
    """The plan alone."""
    ...


@overload
def sweep(model: Any, data: Any, methods: Any, *, dry_run: Literal[False] = ..., **options: Unpack[Options]) -> Sweep:
    """The sweep itself."""
    ...


def sweep(
    model: Any,
    data: Any,
    methods: Any,
    *,
    layers: Iterable[int] | None = None,
    positions: Sequence[Position] = ("last",),
    strengths: Sequence[float] | Mapping[str, Sequence[float]] = (0.05, 0.1, 0.2, 0.4),
    judge: Judge | None = None,
    primary: str = "share",
    guardrails: Bounds = GUARDRAILS,
    metrics: Mapping[str, Metric] | None = None,
    unrelated: Sequence[str] = (),
    keep: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 4,
    max_new_tokens: int = 32,
    ablation: bool = False,
    kl: float = 0.1,
    out: str | Path | None = None,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Plan | Sweep:
    """Every method at every layer and reading position: screened by the cross-validated AUC of h, then generated from
    at the best `keep` places per method, at rising strengths until the stop rule of the plan ends the walk.

        plan = ot.sweep(model, data, {"ODESteer": ot.ODESteer}, judge=judge, dry_run=True)  # nothing is run
        found = ot.sweep(model, data, {"ODESteer": ot.ODESteer}, judge=judge, out="sweep")  # resumes, if killed
        print(found, found.best(), found.pareto())

    `data`: an object with the texts `desired`, `undesired` and `prompts`; KL is measured on greedy continuations of its
    `validation_prompts`, or else of the prompts. `methods`: by name classes or functions acts → method of one site.
    `layers` None: about eight, as `choose_layer`. `strengths`: numbers s for all methods, relative_T = s where T is a
    length, else T = s / 0.3 · `method.usual_T`, so that CAA too moves by s of the usual norm, and a map goes s / 0.3 of
    its way, up to the largest T there is; or by name numbers in the unit of the method, relative_T or T. The table says
    both. `judge` as for `compare`: `share` is the share that it calls desired. `primary`: "share", or one of `metrics`,
    functions of texts that return one number, higher is better. `guardrails`: bounds (low, high) of measures by name,
    see `odesteer_tl.evaluation.sweeps.guardrails`; `unrelated`: prompts on which the measure unrelated_kl is taken. The
    seed of a cell sets its fit and its sampling, so that neither order nor interruption changes a figure.

    `ablation`: also h linear or nonlinear (φ(a) = a/‖a‖ or the polynomial of ODESteer) × one step or ten, at the place
    where the AUCs of both h are largest on average, each at the strength that spends `kl` nats of KL per token on the
    validation prompts; `Sweep.ablation` has the rows and their paired differences.

    `out`: a folder; each finished cell, with its texts, is one line there, and the same call resumes. Model, texts,
    functions with all that they hold, settings and versions must be the same; what a judge holds and cannot be
    compared, such as a client, is named in a warning. `progress` gets a line before each cell, with the time that is
    left at most. A dry run runs nothing, and looks whether the folder is one that could be resumed.

    Returns a `Sweep`, or its `Plan` with `dry_run`. Raises ValueError for data, methods, strengths, bounds or metrics
    of another kind, fewer than two prompts, a `kl` that is not above 0, methods with the names of the ablation's rows,
    a folder that another process writes, and one of another protocol, with the difference.
    """
    question = asked(
        model, data, methods, layers=layers, positions=positions, strengths=strengths, judge=judge, primary=primary,
        guardrails=guardrails, metrics=dict(metrics or {}), unrelated=unrelated, keep=keep, seeds=seeds,
        samples=samples, max_new_tokens=max_new_tokens, ablation=ablation, kl=kl,
    )  # fmt: skip
    plan, say = question.plan, progress or (lambda said: None)
    if dry_run:
        if out is not None and (kept := check_folder(Path(out))).exists():
            check_same(kept, question.protocol()[0])
        return plan
    with Cells(out, *question.protocol(), holds=HOLDS) as cells:
        if len(cells):
            say(f"finished before, in {out}: {len(cells)} of at most {plan.cells}")
        say("screening")
        places, engine = read_places(question), Engine(question.entries, question.settings(), plan.seeds[0])
        screening = screened(engine, question, places)
        rows = _Rows(plan, cells, CellMeasures(question, engine, places), say)
        first = rows.row(UNSTEERED, None, 0.0)
        walks = [
            walked(first, plan.strengths[one.method], partial(rows.row, one.method, (one.layer, one.position)))
            for one in screening
            if one.kept
        ]
        found = None
        if plan.ablation is not None:
            say("screening for the ablation")
            at = ablated_place(places), Budget(plan.ablation)
            found = ablated(plan.ablation, lambda name: rows.row(name, *at), plan.primary, plan.measures)
        if not rows.seconds:
            say("every cell of the table was finished before")
    return Sweep(plan, screening, (first, *(row for walk in walks for row in walk)), found)


class _Rows:
    """Rows of finished cells; a cell that is not there yet is measured and kept, and its turn is said."""

    def __init__(self, plan: Plan, cells: Cells, measures: CellMeasures, say: Callable[[str], None]) -> None:
        self.plan, self.cells, self.measures, self.say = plan, cells, measures, say
        self.seconds, self.asked_for = list[float](), 0

    def row(self, name: str, place: Place | None, strength: At) -> SweptRow:
        """A method at a place and strength, over all seeds."""
        layer, position = place or (None, None)
        found = [self._cell(name, place, strength, seed) for seed in self.plan.seeds]
        of = {one: [cell["measures"][one] for cell in found] for one in self.plan.measures}
        means = {one: None if None in values else fmean(values) for one, values in of.items()}
        bad = () if place is None else broken(means, self.plan.guardrails)
        scores, unit, value = [cell["scores"] for cell in found], found[0]["unit"], found[0]["value"]
        at = value if isinstance(strength, Budget) else strength
        texts = [cell["texts"] for cell in found]
        return SweptRow(name, layer, position, at, unit, value, means, scores, bad, texts)

    def _cell(self, name: str, place: Place | None, strength: At, seed: int) -> dict[str, Any]:
        walk = [strength] if place is None or isinstance(strength, Budget) else self.plan.beside(name, strength)
        keys = {one: _key(name, place, one, seed) for one in walk}
        self.asked_for += 1
        if any(self.cells.get(key) is None for key in keys.values()):  # a killed sweep may have kept some of them
            how = ", ".join(f"{one.kl:g} nats" if isinstance(one, Budget) else f"strength {one:g}" for one in walk)
            where = "" if place is None else f", layer {place[0]}, position {place[1]}, {how}"
            self.say(f"{name}{where}, seed {seed}: cell {self.asked_for} of at most {self.plan.cells}{self._left()}")
            self._measure(name, place, strength, seed, keys)
        found = self.cells.get(keys[strength])
        assert found is not None  # it was added
        return found

    def _measure(
        self, name: str, place: Place | None, strength: At, seed: int, keys: Mapping[At, dict[str, Any]]
    ) -> None:
        """Measure the cells of `keys` in one batch, and keep those that are not there yet; where that fails, which may
        be for a strength at which the walk never arrives, the one that is asked for."""
        start, walk = time.perf_counter(), list(keys)
        try:
            measured = self.measures.cells(name, place, walk, seed)
        except (ValueError, RuntimeError):
            if len(walk) == 1:
                raise
            walk = [strength]
            measured = self.measures.cells(name, place, walk, seed)
        self.seconds += [(time.perf_counter() - start) / len(walk)] * len(walk)
        for one, cell in zip(walk, measured, strict=True):
            if self.cells.get(keys[one]) is None:
                self.cells.add(keys[one] | cell)

    def _left(self) -> str:
        """How long the rest takes at most, from the cells measured so far."""
        if not self.seconds:
            return ""
        seconds = fmean(self.seconds) * (self.plan.cells - self.asked_for + 1)
        return f", at most {seconds:.0f} s left" if seconds < 120 else f", at most {seconds / 60:.0f} min left"


def _key(name: str, place: Place | None, strength: At, seed: int) -> dict[str, Any]:
    """What names the cell in the folder."""
    at = asdict(strength) if isinstance(strength, Budget) else strength
    return dict(zip(KEY, (name, *(place or (None, None)), at, seed), strict=True))
