"""`ot.compare`: fit all, check each one's own conditions, and judge what they make a model write."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.checks import closed_conditions_of, conditions_of
from odesteer_tl.evaluation.continuations import UNSTEERED, Judge, Setting, Steerer, first_of, pointwise
from odesteer_tl.evaluation.data import Material, Source, check_place, material_of
from odesteer_tl.evaluation.entries import LITERATURE, LOOPS, Entry, Prompted, controls, entry_of
from odesteer_tl.evaluation.results import ComparedRow
from odesteer_tl.evaluation.runs import Base, base_of, levels_at, run_row, unsteered
from odesteer_tl.evaluation.tables import Comparison
from odesteer_tl.methods import Method


def compare(
    model: Any,
    data: Any,
    methods: Mapping[str, Any] | None = None,
    *,
    layer: int | None = None,
    judge: Judge | None = None,
    prefixes: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 4,
    validation_samples: int = 2,
    max_new_tokens: int = 32,
    progress: Callable[[str], None] = lambda said: None,
) -> Comparison:
    """Fit `methods`, check them on held-out activations and, where there is a `judge`, on what the model writes.

    `data`: `ot.load_demo()` or an object with its fields, read at `layer` (a third of the way unless given); or
    `ContrastiveActivations`, a fifth of them held out, for the checks alone (`model` may be None). `methods`: name to a
    fitted method (whose AUC flatters it where it was fitted on what is held out here), or to what fits one: a class's
    own `fit`, such as `ot.HPR.fit`, which gets texts, pairs or pairs with queries by what `odesteer-tl methods` says it
    needs, and each seed where it takes one; or a function, which gets the texts' activations once, whatever the seeds.
    None for the methods of the literature, closed loops (where a model read the data), and three controls (the
    prompt-only one needs three `prefixes`, the weakest first). A closed loop's own fit gets the model and the texts;
    A-LQR's goes back through every block: where that is too much, name the methods that you want.

    `judge`: texts to the probability that each is as desired. Every row gets three trials on the validation prompts:
    median displacements .1, .2, .4 (a closed loop's as the model shows them at `layer`), or those that the unit of
    a method's T names (.25, .5, 1 of a map), or the prefixes. Between them the rule of `evaluation.curve` takes the
    strength that spends a budget of perplexity and variety, which is judged on the test prompts, once per seed:
    sampling, networks, random directions and shuffled labels start from it. Checks are made with the fit of the first.

    Rows of the literature that the data do not serve are left out, and `left_out` says why. Raises ValueError for data
    or methods of another kind, methods fitted at another site than the data are read at, a judge without prompts, no
    seeds, `prefixes` beside `methods` or another number of them, a `layer` for activations, and as the methods' `fit`.
    """
    if judge is not None and not (hasattr(data, "prompts") and hasattr(data, "validation_prompts")):
        raise ValueError(
            "A judge needs prompts and validation_prompts to be continued: pass data with the fields of ot.load_demo()."
        )
    if isinstance(seeds, int) or not isinstance(methods, (Mapping, type(None))):
        raise ValueError(f"seeds are numbers, such as (0, 1, 2), and methods a dict by name; got {seeds}, {methods}.")
    if not len(seeds):
        raise ValueError("compare needs at least one seed, got none.")
    if methods is not None and len(prefixes):
        raise ValueError(
            "prefixes are those of the prompt-only control, which stands beside the literature's methods: leave out "
            "methods, or name a Prompted(prefixes) of odesteer_tl.evaluation.entries among them."
        )
    named = LITERATURE | LOOPS | controls(prefixes) if methods is None else methods
    entries = {name: entry_of(name, method) for name, method in named.items()}
    progress("reading")
    material = material_of(model, data, layer)
    left_out = {} if methods is not None else _not_served(entries, material)
    settings: list[Setting] = []
    if judge is not None:
        if methods is None and not prefixes:
            left_out["prompt only"] = "no prefixes were given"
        settings = settings_of(
            model, data, material, judge, seeds,
            samples=samples, validation_samples=validation_samples, max_new_tokens=max_new_tokens,
        )  # fmt: skip
    optional = LOOPS if methods is None else ()
    return compared(material, entries, left_out, seeds[0], settings, progress, optional)


def settings_of(
    model: Any, data: Any, material: Material, judge: Judge, seeds: Sequence[int], **counts: Any
) -> list[Setting]:
    """A setting per seed, to continue the prompts of `data` where the material was read; `counts` are its fields."""
    site = material.texts.layer
    assert site is not None  # material_of has read the texts there
    prompts, others = list(data.prompts), list(data.validation_prompts)
    return [Setting(model, site, prompts, others, judge, seed=seed, **counts) for seed in seeds]


def compared(
    material: Material,
    entries: Mapping[str, Entry],
    left_out: dict[str, str],
    seed: int,
    settings: Sequence[Setting],
    progress: Callable[[str], None],
    optional: Collection[str] = (),
) -> Comparison:
    """The rows of `entries` but those left out, the unsteered model first where texts are made.

    Of `optional` ones those that fail are left out, with the reason: what a model has no memory for, or cannot show.
    Methods are checked with the fit of `seed`; there is one run per setting, and settings differ in their seed alone.
    Raises ValueError where the material has not what an entry is fitted on.
    """
    bases = []
    for setting in settings:
        progress(f"{UNSTEERED}, seed {setting.seed}")
        bases.append(base_of(setting))
    rows = [ComparedRow(UNSTEERED, "nothing", None, 0.0, None, tuple(map(unsteered, bases)))] if bases else []
    for name, entry in entries.items():
        if name not in left_out:
            progress(name)
            try:
                rows.append(_row(name, entry, material, seed, bases))
            except (ValueError, RuntimeError) as error:
                if name not in optional:
                    raise
                left_out[name] = str(error)
    return Comparison(tuple(rows), left_out)


def _not_served(entries: Mapping[str, Entry], material: Material) -> dict[str, str]:
    """The rows that are fitted on what the data do not have, and the reason."""
    reasons = {}
    for name, entry in entries.items():
        try:
            material.on(entry.on)
        except ValueError as missing:
            reasons[name] = str(missing)
    return reasons


def _row(name: str, entry: Entry, material: Material, seed: int, bases: Sequence[Base]) -> ComparedRow:
    try:
        acts = material.on(entry.on)
    except ValueError as missing:
        raise ValueError(f"{name!r} cannot be fitted: {missing}.") from missing
    start = time.perf_counter()
    steerer = _fitted(name, entry, acts, material, seed)
    seconds = None if entry.on == "elsewhere" else time.perf_counter() - start
    levels = levels_at(bases[0], steerer, entry.positions) if bases else []
    runs = []
    for base in bases:
        if entry.by_chance and base.setting.seed != seed:
            own = _fitted(name, entry, acts, material, base.setting.seed)
            runs.append(run_row(base, own, levels_at(base, own, entry.positions), entry.positions))
        else:
            runs.append(run_row(base, steerer, levels, entry.positions))
    if isinstance(steerer, Prompted):
        return ComparedRow(name, "words", None, seconds, None, tuple(runs))
    method = first_of(steerer)
    source, site = material.source, material.texts.layer
    if isinstance(method, FeedbackController):
        assert source is not None and site is not None  # _fitted has asked for them
        checked = closed_conditions_of(method, source.model, source.held_out, site, entry.positions)
    else:
        checked = conditions_of(pointwise(method), material.held_out)
    return ComparedRow(name, entry.on, method, seconds, checked, tuple(runs))


def _fitted(
    name: str, entry: Entry, acts: ContrastiveActivations | Source, material: Material, seed: int
) -> Steerer | Prompted:
    """What `entry` fits. Raises ValueError, with the row's name, for what cannot be fitted or compared."""
    try:
        steerer = entry.fit(acts, seed)
        for method in steerer if isinstance(steerer, tuple) and steerer else (steerer,):
            if isinstance(method, Method):
                check_place(method, material)
                if isinstance(method, FeedbackController) and method is not steerer:
                    raise ValueError("closed loops cannot take turns: at T = 0 they still act")
            elif not isinstance(method, Prompted):
                raise ValueError(f"its function returns a fitted method, this one {method!r}")
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be compared: {error}") from error
    return steerer
