"""What `odesteer-tl demo` does: a comparison of a few rows under one seed, with a picture and some of the texts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from odesteer_tl.assets.demo import Demo, load_demo
from odesteer_tl.backends import load_model
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.evaluation.choose_layer import usual_layers
from odesteer_tl.evaluation.compare import check_chat, compared, settings_of
from odesteer_tl.evaluation.comparison_plots import plot_budgets
from odesteer_tl.evaluation.continuations import UNSTEERED, Setting
from odesteer_tl.evaluation.data import material_of
from odesteer_tl.evaluation.entries import LITERATURE, Entry, opposites
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.judged_texts import FOLDS
from odesteer_tl.evaluation.plots import check_picture
from odesteer_tl.evaluation.reports.model_name import model_name
from odesteer_tl.evaluation.reports.stages import counted, stages
from odesteer_tl.evaluation.runs import prompt_activations
from odesteer_tl.evaluation.tables import Comparison, budgets_table, marks_in, texts_table, wrapped
from odesteer_tl.flows.flow import Trajectory
from odesteer_tl.methods import FlowMethod, ODESteer

BUDGETS = (0.1, 0.03, 0.3)
"""In nats: the budget of the main table first, then a third and three times as much."""
SAMPLES = 12
FURTHER_SAMPLES = 3
"""Continuations of a prompt at the first budget and at each other. The first are enough for rows that hold from seed to
seed (benchmarks/stability.py), and each random direction and its opposite has its turn in every prompt there."""
QUICK_TEXTS, QUICK_VALIDATION, QUICK_SAMPLES = 150, 50, 3
QUICK_LAYERS = 6
"""Of a quick run: texts a side to fit on and for the AUC, continuations of a prompt, and the most layers that are all
tried; of more of them every second one is. On a model of 135M parameters, reading and choosing take a third of the
time."""
EXAMPLES = 3
RANDOM = "random direction"
SHOWN = (UNSTEERED, RANDOM, "CAA", "ODESteer")
ENTRIES = {RANDOM: Entry(lambda acts, seed: opposites(acts, seed, SAMPLES // 2), by_chance=True)} | {
    name: LITERATURE[name] for name in ("CAA", "ITI", "one-step ODESteer", "ODESteer")
}


def run_showcase(
    *,
    model: str | None = None,
    layer: int | None = None,
    towards_praise: bool = True,
    quick: bool = False,
    seed: int = 0,
    chat: bool = False,
    json_output: bool = False,
    picture: str | Path = "odesteer_demo.png",
    out: Callable[[str], object] = print,
    load: Callable[[str], Any] = load_model,
) -> Comparison:
    """Compare the rows on the embedded model, or on `model`, and print them by `out`; the picture goes to `picture`.

    Raises ValueError as `check_picture` does, before any work; OSError where the picture fails after the table.
    """
    start, say = time.perf_counter(), stages()
    check_picture(picture)
    say("loading the model")
    demo = _towards(load_demo(None if model is None else load(model)), towards_praise)
    check_chat(demo.model, chat)
    if quick:
        demo = replace(
            demo, desired=demo.desired[:QUICK_TEXTS], undesired=demo.undesired[:QUICK_TEXTS],
            validation_desired=demo.validation_desired[:QUICK_VALIDATION],
            validation_undesired=demo.validation_undesired[:QUICK_VALIDATION],
        )  # fmt: skip
    say(f"reading {len(demo.desired)} + {len(demo.undesired)} texts" + (", choosing the layer" * (layer is None)))
    tried = layers_to_try(demo.model) if quick and layer is None else layer
    material = material_of(demo.model, demo, tried, kl=BUDGETS[0], folds=1 if quick else FOLDS)
    say(f"fitting at {material.place}")
    judge = Judge.load_embedded()
    options: dict[str, Any] = {
        "budgets": BUDGETS,
        "samples": SAMPLES,
        "further_samples": FURTHER_SAMPLES,
        "max_new_tokens": 32,
    }
    if quick:
        options = {"budgets": BUDGETS[:1], "samples": QUICK_SAMPLES, "max_new_tokens": 16}
    (setting,) = settings_of(
        demo.model, demo, material, _probability(judge, towards_praise), [seed], chat=chat, **options
    )
    comparison = compared(material, ENTRIES, {}, seed, [setting], counted(say, len(ENTRIES) + 1))
    name = model_name(model, demo.model)
    goal = "praise" if towards_praise else "its opposite"
    accuracy = {"whole": judge.heldout_accuracy(), "40 words": judge.heldout_accuracy(words=40)}
    if json_output:
        facts = {"model": name, "layer": setting.layer, "goal": goal, "seed": seed, "judge_accuracy": accuracy}
        out(json_text(facts | comparison.as_json()))
    else:
        out(_report(comparison, setting, accuracy, judge.trained_on, f"Steering {name} towards {goal}"))
    say("drawing")
    title = f"Steering {name} at layer {setting.layer}, towards {goal}"
    plot_budgets(comparison.rows, _trajectory(comparison, setting), picture, title)
    if not json_output:
        out(f"Picture: {picture}   Time: {time.perf_counter() - start:.0f} s")
    return comparison


def layers_to_try(model: Any) -> list[int]:
    """The layers among which a quick run chooses."""
    usual = usual_layers(layers_of(model))
    return usual[1::2] if len(usual) > QUICK_LAYERS else usual


def _report(comparison: Comparison, setting: Setting, accuracy: dict[str, float], trained_on: str, heading: str) -> str:
    count, rows, budget = len(setting.prompts) * setting.samples, comparison.rows, comparison.budgets[0]
    best = max(rows, key=lambda row: row.at()[0].shift)
    conditions = {row.name: row.conditions for row in rows if row.conditions is not None}
    aucs = ", ".join(f"{name} {found.auc:.2f}" for name, found in conditions.items() if found.auc is not None)
    tables = [texts_table(rows, budget), *([budgets_table(comparison)] if len(comparison.budgets) > 1 else [])]
    further = len(setting.prompts) * setting.samples_at(max(comparison.budgets))
    others = f" At the other budgets: {further} continuations a row." if len(comparison.budgets) > 1 else ""
    lines = [
        "",
        wrapped(
            f"{heading}: {count} continuations a row of {setting.max_new_tokens} tokens, from {len(setting.prompts)} "
            f"neutral prompts. Fitted at {comparison.place}."
        ),
        "",
        f"At {budget:g} nats of KL:",
        "\n\n".join(tables),
        *map(wrapped, marks_in(tables)),
        "",
        f"Largest shift: {best.name}, {100 * best.at()[0].shift:+.1f} points.",
        "",
        wrapped(
            "KL: of the next token, unsteered ‖ steered, in nats per token, on the model's own continuations of "
            f"{len(setting.validation_prompts)} other prompts; each row has the strength, T or a part of ‖a‖, that "
            "spends the budget. moved: mean ‖a(T) − a‖/‖a‖ of the prompts' last tokens. desired: share that the judge "
            "calls as asked. shift: its difference from no steering. [ ]: 95 % bootstrap over prompts. ppl: of the "
            "continuations under the unsteered model. "
            f"random direction: {SAMPLES // 2} of them and their opposites, in turns over the continuations." + others
        ),
        wrapped(
            f"Judge: trained on {trained_on.rstrip('.')}. Accuracy on 500 held-out reviews {accuracy['whole']:.3f}, on "
            f"40 words of each {accuracy['40 words']:.3f}."
        ),
        wrapped(f"AUC of h on unseen texts: {aucs}."),
        "",
    ]
    for i in _spread(len(setting.prompts), EXAMPLES):
        lines.append(f"> {setting.prompts[i]}")
        for row in (row for row in rows if row.name in SHOWN):
            text = row.at()[0].continuations[i * setting.samples]
            lines.append(f"  {row.name:<17}{' '.join(text.split())}")
        lines.append("")
    return "\n".join(lines)


def _trajectory(comparison: Comparison, setting: Setting) -> Trajectory | None:
    """h along the way of ODESteer, for the last tokens of the test prompts."""
    row = comparison.row(ODESteer.view.name)
    (run,) = row.at()
    if not isinstance(row.method, FlowMethod) or run.level is None:
        return None
    return row.method.trajectory(prompt_activations(setting), run.level.strength)


def _spread(n: int, k: int) -> list[int]:
    """k indices spread evenly over n: examples are taken by position, never by how well they turned out."""
    return [i * n // k for i in range(k)]


def _towards(demo: Demo, praise: bool) -> Demo:
    """The data, with the sides changed for the other direction; these rows need no pairs."""
    demo = replace(demo, pairs=[])
    if praise:
        return demo
    return replace(
        demo, desired=demo.undesired, undesired=demo.desired, validation_desired=demo.validation_undesired,
        validation_undesired=demo.validation_desired,
    )  # fmt: skip


def _probability(judge: Judge, praise: bool) -> Callable[[Sequence[str]], Float[Tensor, " n"]]:
    def probability(texts: Sequence[str]) -> Float[Tensor, " n"]:
        positive = judge.positive_probability(texts)
        return positive if praise else 1 - positive

    return probability
