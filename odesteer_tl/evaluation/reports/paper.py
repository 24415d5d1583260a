"""What `odesteer-tl compare` does: the paper's Tables 2 and 3 in small, on the embedded model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odesteer_tl.assets.demo import Demo, load_demo
from odesteer_tl.backends import load_model
from odesteer_tl.evaluation.checks import DISPLACEMENT
from odesteer_tl.evaluation.compare import check_chat, compared, settings_of
from odesteer_tl.evaluation.continuations import UNSTEERED
from odesteer_tl.evaluation.data import material_of
from odesteer_tl.evaluation.entries import LITERATURE, LOOPS, PRAISE, controls
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.plots import check_picture
from odesteer_tl.evaluation.reports.ablation import ablation_of, ablation_table, barriers_of, entries_of
from odesteer_tl.evaluation.reports.model_name import model_name
from odesteer_tl.evaluation.reports.stages import counted, stages
from odesteer_tl.evaluation.tables import Comparison, wrapped


@dataclass(frozen=True)
class Counts:
    """How many texts are generated for every row."""

    prompts: int
    validation_prompts: int
    samples: int
    max_new_tokens: int
    seeds: int


BUDGET = 0.1
"""In nats of KL per token, at which all rows are compared."""

FULL = Counts(prompts=40, validation_prompts=24, samples=4, max_new_tokens=32, seeds=3)
ABLATED = "The ablation of Table 3: h linear or nonlinear, one step or ten, the paper's values or tuned ones."
QUICK = Counts(prompts=20, validation_prompts=12, samples=2, max_new_tokens=24, seeds=2)


def run_contest(
    *,
    model: str | None = None,
    layer: int | None = None,
    quick: bool = False,
    seeds: int | None = None,
    chat: bool = False,
    json_output: bool = False,
    picture: str | Path | None = "odesteer_compare.png",
    out: Callable[[str], object] = print,
    load: Callable[[str], Any] = load_model,
) -> Comparison:
    """Compare all rows on the embedded model, or on `model`; print them by `out` and write the plot to `picture`.

    Raises ValueError for fewer than one seed and as `check_picture` does, before any work; OSError where the picture
    fails after the table.
    """
    start, say = time.perf_counter(), stages()
    counts = QUICK if quick else FULL
    chosen = range(counts.seeds if seeds is None else seeds)
    if not len(chosen):
        raise ValueError(f"compare needs at least one seed, got {seeds}.")
    if picture is not None:
        check_picture(picture)
    say("loading the model")
    demo = _cut(load_demo(None if model is None else load(model)), counts)
    check_chat(demo.model, chat)
    say("reading the texts" + (", choosing the layer" * (layer is None)))
    material = material_of(demo.model, demo, layer, kl=BUDGET)
    say(f"tuning gamma, coef0, degree and C at {material.place}")
    barriers = barriers_of(material.texts)
    rows = LITERATURE | LOOPS | controls(PRAISE)
    judge = Judge.load_embedded()
    settings = settings_of(
        demo.model, demo, material, judge.positive_probability, chosen,
        samples=counts.samples, max_new_tokens=counts.max_new_tokens, budgets=(BUDGET,), chat=chat,
    )  # fmt: skip
    site = settings[0].layer
    entries = rows | entries_of(barriers, rows)
    comparison = compared(material, entries, {}, 0, settings, counted(say, len(entries) + 1))
    ablation = ablation_of(comparison, barriers, material)
    name = model_name(model, demo.model)
    shown = [UNSTEERED, *rows]
    if json_output:
        facts = {
            "model": name,
            "layer": site,
            "seeds": list(chosen),
            "counts": vars(replace(counts, seeds=len(chosen))),
        }
        out(json_text(facts | {"ablation": ablation.as_json()} | comparison.as_json()))
    else:
        heading, ablated = _heading(name, comparison.place, counts, len(chosen)), ablation_table(comparison, ablation)
        how = map(wrapped, _how_to_read(comparison, judge, len(ablation.differences)))
        out("\n".join(["", heading, "", comparison.table(shown), "", ABLATED, "", ablated, "", *how]))
    if picture is not None:
        say("drawing")
        comparison.plot(picture, f"Steering {name} at layer {site} towards praise, {len(chosen)} seeds")
    if not json_output:
        out(f"{'' if picture is None else f'Picture: {picture}   '}Time: {time.perf_counter() - start:.0f} s")
    return comparison


def _heading(name: str, place: str, counts: Counts, seeds: int) -> str:
    return wrapped(
        f"Steering {name} towards praise: {counts.prompts} prompts × {counts.samples} continuations of "
        f"{counts.max_new_tokens} tokens a row and seed; mean ± sd of {seeds} seeds. Fitted at {place}."
    )


def _how_to_read(comparison: Comparison, judge: Judge, differences: int) -> list[str]:
    """The meaning of the columns, the choice of strengths, and the limits of the numbers."""
    level = comparison.row("prompt only").at()[0].level
    prefix = "" if level is None else level.prefix
    return [
        "Texts. Strength: T, or a part of ‖a‖, under the first seed. moved: mean ‖a(T) − a‖/‖a‖ of the prompts' last "
        "tokens. desired: share that the judge calls praise; shift: its difference from no steering under the same "
        "seed. ppl: of the continuations after the prompt under the unsteered model. Dist-n: distinct n-grams over "
        "all, pooled.",
        f"Strength: that which spends {BUDGET:g} nats, KL(unsteered ‖ steered) of the next token, mean over the "
        "steered tokens of the model's own greedy continuations of other prompts.",
        "Closed loops. A-LQR and S-PID act at all layers, fitted on the last tokens of the texts, and A-LQR+ on every "
        "token; T multiplies their set-points, and at 0 they still act. Moved, length and angle are of last tokens at "
        "the comparison's layer, as the model shows them; h is of the state at every layer: there is none at one.",
        f"Controls. Random direction: two and their opposites, in turns. Shuffled labels: ODESteer. Prompt only: "
        f"“{prefix}” before the prompt, of {len(PRAISE)} prefixes the one whose KL is nearest to the budget, and ppl "
        "without it.",
        f"Activations. On held-out undesired reviews, at a median displacement of {DISPLACEMENT:g}, or T = 1 of a map "
        "or a loop. h rises: share for which h never falls on the way. Fitted on pairs (minimal contrasts with their "
        "queries), texts (ends of reviews), or the model with them: h of pairs is judged on reviews all the same.",
        "Ablation. AUC, folds: of h on five held-out parts of the fitting texts, which flatters what was tuned; "
        "held out: on texts that took no part. γ/c₀ is what bends h, so c₀ stays 1. Differences: mean ± sd over seeds, "
        "and a 95 % bootstrap over prompts. A difference is one where that leaves out 0 and the mean is more than two "
        f"deviations; {differences} are looked at without correction, and a deviation over two seeds says little.",
        f"Judge: accuracy {judge.heldout_accuracy():.3f} on 500 held-out reviews, "
        f"{judge.heldout_accuracy(words=40):.3f} on 40 words of each.",
        "These are not the paper's models, data or judges, and its published numbers are not reproduced here.",
    ]


def _cut(demo: Demo, counts: Counts) -> Demo:
    return replace(
        demo,
        prompts=demo.prompts[: counts.prompts],
        validation_prompts=demo.validation_prompts[: counts.validation_prompts],
    )
