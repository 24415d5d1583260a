"""`ot.sweep`: screen all places, generate at the best, walk upwards in strength, stop, and resume."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from odesteer_tl._shapes import Position
from odesteer_tl.backends.collect import collect_places
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.data.tokens import reads_several
from odesteer_tl.evaluation.choose_layer import usual_layers
from odesteer_tl.evaluation.continuations import UNSTEERED, Judge, Setting
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.entries import entry_of
from odesteer_tl.evaluation.levels import BATCH, Level, unsteered_texts
from odesteer_tl.evaluation.runs import Base, Run, base_of, prompt_activations, run_at, unsteered
from odesteer_tl.evaluation.separation import separations
from odesteer_tl.evaluation.strength_search import search_of, strength_of
from odesteer_tl.evaluation.sweeps import guardrails as guards
from odesteer_tl.evaluation.sweeps.cells import KEY, Cells
from odesteer_tl.evaluation.sweeps.plan import Plan, protocol_of
from odesteer_tl.evaluation.sweeps.result import Screened, Sweep, SweptRow
from odesteer_tl.evaluation.sweeps.walk import walked
from odesteer_tl.methods import CAA, PointwiseMethod


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
    guardrails: guards.Bounds = guards.GUARDRAILS,
    metrics: Mapping[str, guards.Metric] | None = None,
    unrelated: Sequence[str] = (),
    keep: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 4,
    max_new_tokens: int = 32,
    out: str | Path | None = None,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Every method at every layer and reading position: screened by the cross-validated AUC of h, then generated from
    at the best `keep` places per method, at rising strengths until the stop rule of the plan ends the walk.

        plan = ot.sweep(model, data, {"ODESteer": ot.ODESteer}, judge=judge, dry_run=True)  # nothing is run
        found = ot.sweep(model, data, {"ODESteer": ot.ODESteer}, judge=judge, out="sweep")  # resumes, if killed
        print(found, found.best(), found.pareto())

    `data`: an object with the texts `desired`, `undesired` and `prompts`; KL is measured on greedy continuations of its
    `validation_prompts`, or else of the prompts. `methods`: by name classes or functions acts → method of one site.
    `layers` None: about eight, as `choose_layer`. `strengths` are relative_T, and T for a method whose T is no length,
    which a dict by name has to give. `judge` as for `compare`: `share` is the share that it calls desired. `primary`:
    "share", or one of `metrics`, functions of texts that return one number, higher is better. `guardrails`: bounds
    (low, high) of measures by name, see `odesteer_tl.evaluation.sweeps.guardrails`; `unrelated`: prompts on which the
    measure unrelated_kl is taken. The seed of a cell sets its fit and its sampling, so that neither order nor
    interruption changes a figure. `out`: a folder; each finished cell is one line there, and the same call resumes.

    Returns a `Sweep`, or its `Plan` with `dry_run`. Raises ValueError for data, methods, strengths, bounds or metrics
    of another kind, fewer than two prompts, and a folder of another protocol, with the difference.
    """
    say = progress or (lambda said: None)
    metrics = dict(metrics or {})
    missing = [name for name in ("desired", "undesired", "prompts") if not hasattr(data, name)]
    if missing:
        raise ValueError(f"sweep takes data with desired, undesired and prompts, as ot.load_demo(); {missing} lacks.")
    if not isinstance(methods, Mapping) or not methods or UNSTEERED in methods:
        raise ValueError(f'methods is a dict by name, such as {{"CAA": ot.CAA}}; got {methods!r}.')
    if isinstance(seeds, int) or not seeds or isinstance(positions, str):
        raise ValueError(f'seeds and positions are sequences, (0, 1) and ("last",); got {seeds!r} and {positions!r}.')
    if judge is None and primary == "share":
        raise ValueError("share needs a judge: give judge=, or metrics={name: function} and primary=name.")
    known = [*guards.MEASURES, *(["unrelated_kl"] if unrelated else []), *(["share"] if judge else [])]
    if primary != "share" and primary not in metrics:
        raise ValueError(
            f"primary is 'share' or one of metrics, {', '.join(metrics) or 'none given'}; got {primary!r}."
        )
    if set(metrics) & {*known, "share", "unrelated_kl"}:
        raise ValueError(f"metrics have names of their own, other than {', '.join(known)}; got {', '.join(metrics)}.")
    if len(data.prompts) < 2 or keep < 1 or any(map(reads_several, positions)):
        raise ValueError('sweep needs two prompts, keep=1 or more, and positions such as "last", one token a text.')
    measures = tuple([*known, *metrics])
    of_layers = tuple(usual_layers(layers_of(model)) if layers is None else sorted(set(layers)))
    walk = strengths if isinstance(strengths, Mapping) else dict.fromkeys(methods, strengths)
    plan = Plan(
        tuple(methods), of_layers, tuple(positions), {name: _rising(name, walk) for name in methods}, measures, primary,
        guards.checked_bounds(guardrails, measures), tuple(dict.fromkeys(seeds)), keep, len(data.prompts), samples,
        max_new_tokens,
    )  # fmt: skip
    entries = {name: entry_of(name, method) for name, method in methods.items()}
    for name, entry in entries.items():
        if entry.on != "texts":
            raise ValueError(f"{name!r} is fitted on {entry.on}; sweep fits on texts at every place, as ot.CAA does.")
    if dry_run:
        return plan
    prompts = list(data.prompts)
    others = list(getattr(data, "validation_prompts", prompts))
    texts = {"desired": data.desired, "undesired": data.undesired, "prompts": prompts, "validation_prompts": others,
             "unrelated": unrelated}  # fmt: skip
    sampling = {"samples": samples, "max_new_tokens": max_new_tokens, "temperature": Setting.temperature,
                "top_p": Setting.top_p}  # fmt: skip
    functions = {f"method {name}": one for name, one in methods.items()} | metrics | {"judge": judge}
    cells = Cells(out, *protocol_of(model, plan, texts, functions, sampling))
    say("screening")
    read = collect_places(
        model, list(data.desired), list(data.undesired), of_layers, positions, queries=None, prepend_bos=None,
        chat_template=False, system=None, paired=False, batch_size=BATCH, progress=False, blocks=None,
    )  # fmt: skip
    acts = {(one.layer, position): one for position, of in zip(positions, read, strict=True) for one in of}
    screening, fits = list[Screened](), dict[Any, Any]()

    def fit(name: str, place: Any, seed: int) -> PointwiseMethod:
        key = (name, place, seed)
        if key not in fits:
            fits[key] = entries[name].fit(acts[place], seed)
            if not isinstance(fits[key], PointwiseMethod):
                raise ValueError(f"sweep takes methods of one site, of activations; {name!r} gives {fits[key]!r}.")
            if isinstance(strengths, Sequence) and search_of(fits[key], None).sought != "relative_T":
                raise ValueError(f"T of {name!r} is no length: give strengths={{{name!r}: (…)}}, in its unit.")
        return fits[key]

    for name in methods:
        screens = fit(name, next(iter(acts)), plan.seeds[0]).barrier is not None
        own = entries[name].fit if screens else lambda rows, seed: CAA.fit(rows)
        found = separations(list(acts.values()), {name: lambda rows, own=own: own(rows, plan.seeds[0])}, progress=False)
        order = sorted(range(len(found)), key=lambda i: -found[i].auc)[: plan.places]
        screening += [
            Screened(name, *place, one.auc, one.error, name if screens else "CAA", i in order)  # type: ignore[arg-type]
            for i, (place, one) in enumerate(zip(acts, found, strict=True))
        ]
    settings = [
        Setting(model, of_layers[0], prompts, others, judge or _nothing, samples, None, max_new_tokens, seed=seed)
        for seed in plan.seeds
    ]
    kept: dict[Any, Any] = {}

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def base(number: int, layer: int) -> Base:
        first = once(number, lambda: base_of(settings[number]))
        setting = replace(settings[number], layer=layer)
        return once((number, layer), lambda: Base(setting, first.outcome, prompt_activations(setting)))

    def row(name: str, place: Any, value: float) -> SweptRow:
        found, unit = [], "T" if name == UNSTEERED else search_of(fit(name, place, plan.seeds[0]), None).sought
        for number, seed in enumerate(plan.seeds):
            key: dict[str, Any] = dict(zip(KEY, (name, *place, value, seed), strict=True))
            cell = cells.get(key)
            if cell is None:
                say(f"{name}, layer {place[0]}, strength {value:g}, seed {seed} ({len(cells)} of at most {plan.cells})")
                cells.add(key | measured(name, place, value, number))
                cell = cells.get(key)
            found.append(cell)
        of = {one: [cell["measures"][one] for cell in found] for one in measures}
        means = {one: None if None in values else fmean(values) for one, values in of.items()}
        bad = () if name == UNSTEERED else guards.broken(means, plan.guardrails)
        return SweptRow(name, place[0], place[1], unit, value, means, [cell["scores"] for cell in found], bad)

    def measured(name: str, place: Any, value: float, number: int) -> dict[str, Any]:
        costs = {"kl": 0.0, "kl_p95": 0.0} | ({"unrelated_kl": 0.0} if unrelated else {})
        if name == UNSTEERED:
            run = unsteered(base(number, of_layers[0]))
        else:
            method = fit(name, place, plan.seeds[number])
            search = search_of(method, None)

            def spent(what: Sequence[str]) -> torch.Tensor:
                own = replace(settings[0], validation_prompts=list(what))
                on: SteeredTexts = once(tuple(what), lambda: unsteered_texts(own))
                return on.divergences(search.pairs, [value], BATCH)[0]

            kl, strength = spent(others), strength_of(search.sought, value)
            costs = {"kl": float(kl.mean()), "kl_p95": float(kl.quantile(0.95))}
            costs |= {"unrelated_kl": float(spent(unrelated).mean())} if unrelated else {}
            level = Level(costs["kl"], costs["kl"], True, strength.T, strength.relative_T)  # type: ignore[arg-type]
            run = run_at(base(number, place[0]), method, level)
        return _cell(run, costs, metrics, primary, measures, samples)

    first = row(UNSTEERED, (None, None), 0.0)
    rows = [first]
    for one in screening:
        if one.kept:
            at = (one.layer, one.position)
            rows += walked(first, plan.strengths[one.method], partial(row, one.method, at))
    return Sweep(plan, tuple(screening), tuple(rows))


def _cell(run: Run, costs: dict[str, float], metrics: Mapping[str, guards.Metric], primary: str,
          measures: Sequence[str], samples: int) -> dict[str, Any]:  # fmt: skip
    texts = run.continuations
    found = costs | {
        "perplexity_ratio": run.perplexity_ratio, "distinct2": run.distinct2, "share": run.share,
        "repetition": guards.repetition(texts), "length": guards.length(texts),
    }  # fmt: skip
    found |= {name: guards.number_of(name, metric, texts) for name, metric in metrics.items()}
    scores = run.desired.mean(1).tolist()
    if primary != "share":
        of_prompts = [texts[i : i + samples] for i in range(0, len(texts), samples)]
        scores = [guards.number_of(primary, metrics[primary], of) for of in of_prompts]
        if not all(map(math.isfinite, scores)):
            raise ValueError(f"The primary metric {primary!r} gives a number that is not finite for some prompt.")
    plain = {name: found[name] if math.isfinite(found[name]) else None for name in measures}
    return {"measures": plain, "scores": scores}


def _rising(name: str, strengths: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    values = strengths.get(name, ())
    if isinstance(values, (str, int, float)) or not len(values) or not all(0 < one < math.inf for one in values):
        raise ValueError(f"strengths of {name!r} are numbers above 0, such as (0.05, 0.1, 0.2); got {values!r}.")
    return tuple(sorted({float(value) for value in values}))


def _nothing(texts: Sequence[str]) -> torch.Tensor:
    """In the place of a judge where there is none: its share is not reported."""
    return torch.zeros(len(texts), device="cpu")
