"""What `odesteer-tl demo` does: collect, fit, choose strengths, steer, judge, print, draw."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends import collect, load_model
from odesteer_tl.barriers import auc
from odesteer_tl.demo import load_demo
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.study import Setting, Study, as_json, run_study, table
from odesteer_tl.methods import CAA, ITI, Method, ODESteer, RandomDirection, StepODESteer

QUICK_GRID = (0.1, 0.2, 0.4)
EXAMPLES = 3


def run_showcase(
    *,
    model: str | None = None,
    layer: int | None = None,
    towards_praise: bool = True,
    quick: bool = False,
    seed: int = 0,
    as_json: bool = False,
    picture: str | Path = "odesteer_demo.png",
) -> Study:
    """Run the study on the embedded model, or on `model`, and print it; the picture goes to `picture`."""
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {text}", file=sys.stderr, flush=True)

    say("loading the model")
    demo = load_demo(None if model is None else load_model(model))
    layer = demo.model.cfg.n_layers // 3 if layer is None else layer
    sides = (demo.desired, demo.undesired) if towards_praise else (demo.undesired, demo.desired)
    held_out = (demo.validation_desired, demo.validation_undesired)
    say(f"reading {len(sides[0])} + {len(sides[1])} texts at blocks.{layer}.hook_resid_post")
    acts = collect(demo.model, *sides, layer, position="mean")
    unseen = collect(demo.model, *(held_out if towards_praise else held_out[::-1]), layer, position="mean")
    methods: dict[str, Method] = {
        "random direction": RandomDirection.fit(acts, seed=seed),
        "CAA": CAA.fit(acts),
        "ITI": ITI.fit(acts),
        "StepODESteer": StepODESteer.fit(acts),
        "ODESteer": ODESteer.fit(acts),
    }
    judge = Judge.load_embedded()
    setting = Setting(
        model=demo.model,
        layer=layer,
        prompts=demo.prompts,
        validation_prompts=demo.validation_prompts,
        judge=_towards(judge, towards_praise),
        seed=seed,
        **({"samples": 5, "validation_samples": 2, "max_new_tokens": 20, "grid": QUICK_GRID} if quick else {}),
    )
    study = run_study(setting, methods, lambda name: say(f"steering: {name}"))
    return study


def _towards(judge: Judge, praise: bool) -> Callable[[list[str]], Float[Tensor, " n"]]:
    def probability(texts: list[str]) -> Float[Tensor, " n"]:
        positive = judge.positive_probability(texts)
        return positive if praise else 1 - positive

    return probability
