"""The study behind `odesteer-tl demo`: every method at the strength that one rule chooses, judged on unseen prompts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends import generate, read_site, token_losses
from odesteer_tl.evaluation.metrics import bootstrap_interval, distinct
from odesteer_tl.evaluation.strength import GRID, Trial, best, time_for
from odesteer_tl.flow import Trajectory
from odesteer_tl.methods import FlowMethod, Method
from odesteer_tl.shapes import Samples

UNSTEERED = "no steering"

Judge = Callable[[Sequence[str]], Float[Tensor, " n"]]
"""Texts to the probability that each is as desired."""

Steerer = Method | tuple[Method, ...]
"""A method, or several of one kind that take turns over the continuations of a prompt: one random direction can move
the judge by chance, so the control averages over several."""


@dataclass(frozen=True)
class Setting:
    """What stays the same for every row. Sampling is the paper's: temperature 0.7, top-p 0.9."""

    model: Any
    layer: int
    prompts: list[str]
    validation_prompts: list[str]
    judge: Judge
    samples: int = 6
    validation_samples: int = 4
    max_new_tokens: int = 32
    temperature: float = 0.7
    top_p: float = 0.9
    grid: tuple[float, ...] = GRID
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Continuations of one setting: `desired` [prompts, samples] is 1.0 where the judge gives more than one half."""

    desired: Float[Tensor, "prompts samples"]
    perplexity: float
    distinct2: float
    tokens_per_second: float
    continuations: list[str]

    @property
    def share(self) -> float:
        return float(self.desired.mean())


@dataclass(frozen=True)
class Row:
    """One line of the table. Shares and their 95 % intervals are in [0, 1]; `shift` is against no steering, paired."""

    name: str
    T: float | None
    displacement: float
    share: float
    share_interval: tuple[float, float]
    shift: float
    shift_interval: tuple[float, float]
    perplexity: float
    distinct2: float
    reaches: float | None
    tokens_per_second: float
    trials: tuple[Trial, ...]
    continuations: list[str]


@dataclass(frozen=True)
class Study:
    """The rows, the unsteered one first, with what the plot needs."""

    rows: list[Row]
    unsteered_trial: Trial
    trajectory: Trajectory | None


def run_study(setting: Setting, methods: Mapping[str, Steerer], progress: Callable[[str], None] = print) -> Study:
    """Choose each method's strength on the validation prompts, then judge it on the test prompts."""
    validation = read_site(setting.model, setting.validation_prompts, setting.layer)
    test = read_site(setting.model, setting.prompts, setting.layer)
    _continue(setting, setting.validation_prompts[:2], 1, None, None)  # warm-up: the first call is not timed
    progress(UNSTEERED)
    base_trial = _trial(setting, None, 0.0, 0.0)
    base = _continue(setting, setting.prompts, setting.samples, None, None)
    rows = [_row(setting, UNSTEERED, None, None, base, base, test, ())]
    trajectory = None
    for name, method in methods.items():
        progress(name)
        first = _first(method)
        times = [time_for(first, validation, goal) for goal in setting.grid]
        trials = [_trial(setting, method, T, goal) for T, goal in zip(times, setting.grid, strict=True)]
        T = best(trials, base_trial).T
        outcome = _continue(setting, setting.prompts, setting.samples, method, T)
        rows.append(_row(setting, name, method, T, outcome, base, test, tuple(trials)))
        if isinstance(first, FlowMethod) and first.flow.steps > 1:
            trajectory = first.trajectory(test, T)
    return Study(rows, base_trial, trajectory)


def table(study: Study) -> str:
    """The rows as text, one line each, with the unit of every column."""
    lines = [
        f"{'':<16}{'T':>7} {'moved':>6} {'desired %':>18} {'shift, points':>22} {'ppl':>7} {'ppl ratio':>9} "
        f"{'Dist-2':>7} {'h ≥ 0':>6} {'tokens/s':>9}"
    ]
    base = study.rows[0]
    for row in study.rows:
        share = f"{100 * row.share:5.1f} [{100 * row.share_interval[0]:4.1f}, {100 * row.share_interval[1]:4.1f}]"
        shift = f"{100 * row.shift:+5.1f} [{100 * row.shift_interval[0]:+5.1f}, {100 * row.shift_interval[1]:+5.1f}]"
        lines.append(
            f"{row.name:<16}{'' if row.T is None else f'{row.T:.4g}':>7} {row.displacement:>6.3f} {share:>18} "
            f"{'' if row is base else shift:>22} {row.perplexity:>7.1f} {row.perplexity / base.perplexity:>9.2f} "
            f"{row.distinct2:>7.3f} {'' if row.reaches is None else f'{row.reaches:.2f}':>6} "
            f"{row.tokens_per_second:>9.0f}"
        )
    return "\n".join(lines)


def as_json(study: Study) -> dict[str, Any]:
    """The table as plain values, trials included, continuations left out."""
    rows = [{k: v for k, v in vars(row).items() if k != "continuations"} for row in study.rows]
    return {"rows": [row | {"trials": [vars(trial) for trial in row["trials"]]} for row in rows]}


def _continue(
    setting: Setting, prompts: Sequence[str], samples: int, method: Steerer | None, T: float | None
) -> Outcome:
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    each, strength = (
        (method, T) if method is None or isinstance(method, Method) else _turns(method, T, samples, repeated)
    )
    start = time.perf_counter()
    out = generate(
        setting.model,
        repeated,
        each,
        strength,
        layer=None if method is None else setting.layer,
        max_new_tokens=setting.max_new_tokens,
        do_sample=True,
        temperature=setting.temperature,
        top_p=setting.top_p,
        seed=setting.seed,
    )
    seconds = time.perf_counter() - start
    losses, counted = token_losses(setting.model, out)
    probability = setting.judge(out.continuations).reshape(len(prompts), samples)
    return Outcome(
        desired=(probability > 0.5).double(),
        perplexity=float((losses.sum() / counted.sum()).exp()),
        distinct2=distinct(out.continuations),
        tokens_per_second=int(counted.sum()) / seconds,
        continuations=out.continuations,
    )


def _turns(
    methods: tuple[Method, ...], T: float | None, samples: int, repeated: Sequence[str]
) -> tuple[list[tuple[Method, Tensor]], None]:
    """A strength per row, T for the method whose turn it is and 0 for the others."""
    turn = torch.arange(len(repeated)) % samples % len(methods)
    return [(method, (turn == number) * torch.as_tensor(T)) for number, method in enumerate(methods)], None


def _first(method: Steerer) -> Method:
    return method if isinstance(method, Method) else method[0]


def _trial(setting: Setting, method: Steerer | None, T: float, displacement: float) -> Trial:
    strength = None if method is None else T
    out = _continue(setting, setting.validation_prompts, setting.validation_samples, method, strength)
    return Trial(displacement, T, out.share, out.perplexity, out.distinct2)


def _row(
    setting: Setting,
    name: str,
    method: Steerer | None,
    T: float | None,
    outcome: Outcome,
    base: Outcome,
    test: Samples,
    trials: tuple[Trial, ...],
) -> Row:
    moved = test if method is None else _first(method).steer(test, T=T)
    barrier = None if method is None else _first(method).barrier
    shift = outcome.desired - base.desired
    return Row(
        name=name,
        T=T,
        displacement=float(((moved - test).norm(dim=1) / test.norm(dim=1)).mean()),
        share=outcome.share,
        share_interval=bootstrap_interval(outcome.desired, seed=setting.seed),
        shift=float(shift.mean()),
        shift_interval=bootstrap_interval(shift, seed=setting.seed),
        perplexity=outcome.perplexity,
        distinct2=outcome.distinct2,
        reaches=None if barrier is None else float((barrier.value(moved) >= 0).double().mean()),
        tokens_per_second=outcome.tokens_per_second,
        trials=trials,
        continuations=outcome.continuations,
    )
