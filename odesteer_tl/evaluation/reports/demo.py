"""What `odesteer-tl demo` does: collect, fit, choose strengths, steer, judge, print, draw."""

import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from odesteer_tl.assets.demo import load_demo
from odesteer_tl.backends import collect, load_model
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.evaluation.continuations import UNSTEERED, Setting, Steerer
from odesteer_tl.evaluation.demo_runs import Study, as_json, curve_table, run_study, table
from odesteer_tl.evaluation.entries import opposites
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.plots import check_picture, plot_study
from odesteer_tl.evaluation.strength import LEAST_DISTINCT, MOST_PERPLEXITY
from odesteer_tl.flows.barriers import auc
from odesteer_tl.methods import CAA, ITI, FlowMethod, ODESteer, StepODESteer

QUICK_GRID = (0.1, 0.2, 0.4)
DIRECTIONS = 6
EXAMPLES = 3
SHOWN = (UNSTEERED, "random direction", "CAA", "ODESteer")


def run_showcase(
    *,
    model: str | None = None,
    layer: int | None = None,
    towards_praise: bool = True,
    quick: bool = False,
    seed: int = 0,
    json_output: bool = False,
    picture: str | Path = "odesteer_demo.png",
    out: Callable[[str], object] = print,
    load: Callable[[str], Any] = load_model,
) -> Study:
    """Run the study on the embedded model, or on `model`, and print it by `out`; the picture goes to `picture`.

    Raises ValueError as `check_picture` does, before any work; OSError where the picture fails after the table.
    """
    start = time.perf_counter()
    check_picture(picture)

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {text}", file=sys.stderr, flush=True)

    say("loading the model")
    demo = load_demo(None if model is None else load(model))
    site = layers_of(demo.model) // 3 if layer is None else layer
    sides = (demo.desired, demo.undesired) if towards_praise else (demo.undesired, demo.desired)
    held_out = (demo.validation_desired, demo.validation_undesired)
    held_out = held_out if towards_praise else held_out[::-1]
    say(f"reading {len(sides[0])} + {len(sides[1])} texts at blocks.{site}.hook_resid_post")
    acts = collect(demo.model, *sides, layer=site, position="mean")
    unseen = collect(demo.model, *held_out, layer=site, position="mean")
    methods: dict[str, Steerer] = {
        "random direction": opposites(acts, seed, DIRECTIONS // 2),
        "CAA": CAA.fit(acts),
        "ITI": ITI.fit(acts),
        "StepODESteer": StepODESteer.fit(acts),
        "ODESteer": ODESteer.fit(acts),
    }
    judge = Judge.load_embedded()
    setting = Setting(
        model=demo.model,
        layer=site,
        prompts=demo.prompts,
        validation_prompts=demo.validation_prompts,
        judge=_towards(judge, towards_praise),
        seed=seed,
        **({"validation_samples": 2, "max_new_tokens": 16, "grid": QUICK_GRID} if quick else {}),
    )
    study = run_study(setting, methods, lambda name: say(f"steering: {name}"))
    fitted = {name: method for name, method in methods.items() if isinstance(method, FlowMethod)}
    aucs = {n: auc(m.barrier, unseen.desired, unseen.undesired) for n, m in fitted.items() if m.barrier is not None}
    accuracy = {"whole": judge.heldout_accuracy(), "40 words": judge.heldout_accuracy(words=40)}
    if json_output:
        facts = {"model": _name(model), "layer": site, "goal": _goal(towards_praise), "seed": seed, "auc": aucs}
        out(json_text(facts | {"judge_accuracy": accuracy} | as_json(study)))
    else:
        out(_report(study, setting, aucs, accuracy, judge.trained_on, _name(model), _goal(towards_praise)))
    say("drawing")
    plot_study(study, picture, title=f"Steering {_name(model)} at layer {site}, towards {_goal(towards_praise)}")
    if not json_output:
        out(f"Picture: {picture}   Time: {time.perf_counter() - start:.0f} s")
    return study


def _report(
    study: Study,
    setting: Setting,
    aucs: dict[str, float],
    accuracy: dict[str, float],
    trained_on: str,
    model: str,
    goal: str,
) -> str:
    count, best = len(setting.prompts) * setting.samples, max(study.rows, key=lambda row: row.shift)
    grid = ", ".join(f"{moved:g}" for moved in setting.grid)
    lines = [
        "",
        f"Steering {model} at layer {setting.layer} towards {goal}: {count} continuations a row of "
        f"{setting.max_new_tokens} tokens, from {len(setting.prompts)} neutral prompts.",
        "",
        table(study),
        "",
        curve_table(study),
        "",
        f"Largest shift: {best.name}, {100 * best.shift:+.1f} points.",
        "",
        _wrapped(
            "moved: mean ‖a(T) − a‖/‖a‖ of the prompts' last tokens. desired: share that the judge calls as asked. "
            "shift: its difference from no steering. [ ]: 95 % bootstrap over prompts. ppl: of the continuations under "
            "the unsteered model. h ≥ 0: share of prompts that end where the method's own barrier is positive. "
            f"random direction: {DIRECTIONS // 2} of them and their opposites, in turns over a prompt's continuations."
        ),
        _wrapped(
            f"Strength: tried at median displacements {grid} on {len(setting.validation_prompts)} other prompts; "
            f"between them, where ppl comes to {MOST_PERPLEXITY}× or Dist-2 to {LEAST_DISTINCT}× of unsteered. The "
            "second table reads the same curves at equal displacements and at equal perplexities."
        ),
        _wrapped(
            f"Judge: trained on {trained_on.rstrip('.')}. Accuracy on 500 held-out reviews {accuracy['whole']:.3f}, on "
            f"40 words of each {accuracy['40 words']:.3f}."
        ),
        _wrapped(f"AUC of h on unseen texts: {', '.join(f'{name} {value:.2f}' for name, value in aucs.items())}."),
        "",
    ]
    for i in _spread(len(setting.prompts), EXAMPLES):
        lines.append(f"> {setting.prompts[i]}")
        for row in (row for row in study.rows if row.name in SHOWN):
            lines.append(f"  {row.name:<17}{' '.join(row.continuations[i * setting.samples].split())}")
        lines.append("")
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=118, subsequent_indent="  ")


def _spread(n: int, k: int) -> list[int]:
    """k indices spread evenly over n: examples are taken by position, never by how well they turned out."""
    return [i * n // k for i in range(k)]


def _name(model: str | None) -> str:
    return "the embedded model" if model is None else model


def _goal(towards_praise: bool) -> str:
    return "praise" if towards_praise else "its opposite"


def _towards(judge: Judge, praise: bool) -> Callable[[Sequence[str]], Float[Tensor, " n"]]:
    def probability(texts: Sequence[str]) -> Float[Tensor, " n"]:
        positive = judge.positive_probability(texts)
        return positive if praise else 1 - positive

    return probability
