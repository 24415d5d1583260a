"""`ot.compare`: fit the methods, check them on held-out activations, and judge the texts that they generate."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from odesteer_tl._shapes import Position
from odesteer_tl.backends.chat_templates import has_template
from odesteer_tl.backends.model_info import tokenizer_of
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.evaluation.checks import closed_conditions_of, conditions_of
from odesteer_tl.evaluation.continuations import UNSTEERED, Judge, Setting, first_of, pointwise
from odesteer_tl.evaluation.data import Material, material_of
from odesteer_tl.evaluation.engine import Engine
from odesteer_tl.evaluation.entries import LITERATURE, LOOPS, Entry, Prompted, controls, entry_of
from odesteer_tl.evaluation.results import ComparedRow
from odesteer_tl.evaluation.strength_search import check_budget
from odesteer_tl.evaluation.tables import Comparison


def compare(
    model: Any,
    data: Any,
    methods: Mapping[str, Any] | None = None,
    *,
    layer: int | None = None,
    position: Position | None = None,
    judge: Judge | None = None,
    kl: float | Sequence[float] = 0.1,
    prefixes: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 4,
    max_new_tokens: int = 32,
    chat: bool = False,
    progress: Callable[[str], None] = lambda said: None,
) -> Comparison:
    """Fit `methods`, check them on held-out activations and, with a `judge`, on the texts that the model generates, all
    at the same cost: `kl` nats of KL(unsteered ‖ steered) per token, one budget or several.

    `data`: `ot.load_demo()` or an object with its fields, read at `layer` and reading `position`; what is not given is
    chosen by `choose_layer` for CAA, one place for all rows. Or `ContrastiveActivations`, of which a fifth is held out,
    for the checks alone (`model` may be None).

    `methods`: a dict from names to fitted methods (the AUC of one that was fitted on the held-out rows is too high), or
    to functions that fit one. A class's own `fit`, such as `ot.HPR.fit`, gets texts, pairs or pairs with queries, as
    `odesteer-tl methods` lists, and each seed if it takes one; the `fit` of a closed loop gets the model and the texts.
    Any other function gets the texts' activations once, whatever the seeds. None: the methods of the literature, closed
    loops (if `data` are texts), and three controls (the prompt-only one needs `prefixes`). A-LQR's fit takes gradients
    through every block: if that is too slow, name the methods that you want.

    `judge`: texts to the probability that each is as desired. The strength that spends a budget is found as by
    `calibrate`, on greedy continuations of the validation prompts; of prefixes the one nearest to it is taken. The test
    prompts are continued at that strength, sampled, and judged, once per seed: the seed sets sampling, networks, random
    directions and shuffled labels. The checks use the fit of the first seed. `chat`: prompts stand in the model's chat
    template.

    Rows of the literature that the data cannot fit are left out, and `left_out` says why. Raises ValueError for data or
    methods of another kind, methods fitted at another site than that of the data, a judge without prompts, no seeds, a
    budget that is not above 0, `prefixes` together with `methods`, a `layer` or `position` for activations, and as
    `choose_layer` and the methods' `fit`.
    """
    if judge is not None and not (hasattr(data, "prompts") and hasattr(data, "validation_prompts")):
        raise ValueError(
            "A judge needs data with prompts and validation_prompts: pass data with the fields of ot.load_demo()."
        )
    if isinstance(seeds, int) or not isinstance(methods, (Mapping, type(None))):
        raise ValueError(f"seeds is a sequence such as (0, 1, 2), and methods a dict by name; got {seeds}, {methods}.")
    if not len(seeds):
        raise ValueError("compare needs at least one seed: pass seeds=(0,).")
    if methods is not None and len(prefixes):
        raise ValueError(
            "prefixes are for the prompt-only control of the default rows: leave out methods, or add a "
            "Prompted(prefixes) of odesteer_tl.evaluation.entries to them."
        )
    if isinstance(prefixes, str):
        raise ValueError(f"prefixes is a sequence of texts, such as ({prefixes!r},); got one text.")
    budgets = budgets_of(kl)
    check_chat(model, chat)
    named = LITERATURE | LOOPS | controls(prefixes) if methods is None else methods
    entries = {name: entry_of(name, method) for name, method in named.items()}
    progress("reading the texts")
    material = material_of(model, data, layer, position, budgets[0])
    left_out = {} if methods is not None else _not_served(entries, material)
    settings: list[Setting] = []
    if judge is not None:
        if methods is None and not prefixes:
            left_out["prompt only"] = "no prefixes were given"
        settings = settings_of(
            model, data, material, judge, seeds,
            samples=samples, max_new_tokens=max_new_tokens, budgets=budgets, chat=chat,
        )  # fmt: skip
    optional = LOOPS if methods is None else ()
    return compared(material, entries, left_out, seeds[0], settings, progress, optional)


def budgets_of(kl: Any) -> tuple[float, ...]:
    """One budget of KL or several, as given. Raises ValueError for none, and for one that is not above 0."""
    kl = kl.tolist() if hasattr(kl, "tolist") else kl  # an array or a tensor
    budgets = tuple(kl) if isinstance(kl, Sequence) and not isinstance(kl, str) else (kl,)
    for budget in budgets or (None,):
        check_budget(budget, "above 0")
    return tuple(map(float, dict.fromkeys(budgets)))


def check_chat(model: Any, chat: bool) -> None:
    """Raise ValueError where prompts cannot stand in a chat template, as the model has none."""
    if chat and not has_template(tokenizer_of(model)):
        raise ValueError("This model's tokenizer has no chat template: leave out chat=True.")


def settings_of(
    model: Any, data: Any, material: Material, judge: Judge, seeds: Sequence[int], **options: Any
) -> list[Setting]:
    """A setting per seed for the prompts of `data`, at the layer of the material; `options` are fields of `Setting`."""
    site = material.texts.layer
    assert site is not None  # material_of has set it
    prompts, others = list(data.prompts), list(data.validation_prompts)
    return [Setting(model, site, prompts, others, judge, seed=seed, **options) for seed in seeds]


def compared(
    material: Material,
    entries: Mapping[str, Entry],
    left_out: dict[str, str],
    seed: int,
    settings: Sequence[Setting],
    progress: Callable[[str], None],
    optional: Collection[str] = (),
) -> Comparison:
    """The rows of `entries` except those left out; the unsteered model comes first if texts are generated.

    `optional` rows that fail are left out with the reason, for example too little memory. Methods are checked with the
    fit of `seed`. There is one run per setting and budget, and settings differ in their seed alone. Raises ValueError
    where the material lacks the data that an entry is fitted on.
    """
    engine, rows = Engine(entries, settings, seed), list[ComparedRow]()
    seeds = [setting.seed for setting in settings]
    if seeds:
        progress(UNSTEERED)
        rows = [ComparedRow(UNSTEERED, "nothing", None, 0.0, None, tuple(map(engine.unsteered, seeds)))]
    for name in entries:
        if name not in left_out:
            progress(name)
            try:
                rows.append(_row(name, engine, material, seeds))
            except (ValueError, RuntimeError) as error:
                if name not in optional:
                    raise
                left_out[name] = str(error)
    return Comparison(tuple(rows), left_out, material.place)


def _not_served(entries: Mapping[str, Entry], material: Material) -> dict[str, str]:
    """The rows whose data are missing, with the reason."""
    reasons = {}
    for name, entry in entries.items():
        try:
            material.on(entry.on)
        except ValueError as missing:
            reasons[name] = str(missing)
    return reasons


def _row(name: str, engine: Engine, material: Material, seeds: Sequence[int]) -> ComparedRow:
    fitted = engine.fitted(name, material, engine.seed)
    entry, seconds = fitted.entry, fitted.seconds
    runs = tuple(
        engine.run(name, material, seed, level) for seed in seeds for level in engine.levels(name, material, seed)
    )
    if isinstance(fitted.steerer, Prompted):
        return ComparedRow(name, "words", None, seconds, None, runs)
    method, source, site = first_of(fitted.steerer), material.source, material.texts.layer
    if isinstance(method, FeedbackController):
        assert source is not None and site is not None  # the engine has checked that
        conditions = closed_conditions_of(method, source.model, source.held_out, site, entry.positions)
    else:
        conditions = conditions_of(pointwise(method), material.held_out)
    return ComparedRow(name, entry.on, method, seconds, conditions, runs)
