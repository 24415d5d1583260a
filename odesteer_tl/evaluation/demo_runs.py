"""The study of `odesteer-tl demo`: every method at the strength of one common rule, judged on test prompts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from odesteer_tl._shapes import Samples
from odesteer_tl.backends import read_site
from odesteer_tl.evaluation.continuations import UNSTEERED, Outcome, Setting, Steerer, continued, pointwise, trial_of
from odesteer_tl.evaluation.curve import Curve
from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.strength import Trial, time_for
from odesteer_tl.flows.flow import Trajectory
from odesteer_tl.methods import FlowMethod


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
    """The rows, the unsteered one first, with the trial and the trajectory that the plot shows."""

    rows: list[Row]
    unsteered_trial: Trial
    trajectory: Trajectory | None


def run_study(setting: Setting, methods: Mapping[str, Steerer], progress: Callable[[str], None] = print) -> Study:
    """Choose each method's strength on the validation prompts, then judge it on the test prompts."""
    validation = read_site(setting.model, setting.validation_prompts, setting.layer)
    test = read_site(setting.model, setting.prompts, setting.layer)
    continued(setting, setting.validation_prompts[:2], 1, None, None)  # warm-up: the first call is not timed
    progress(UNSTEERED)
    base_trial = trial_of(setting, None, 0.0, 0.0)
    base = continued(setting, setting.prompts, setting.samples, None, None)
    rows = [_row(setting, UNSTEERED, None, None, base, base, test, ())]
    trajectory = None
    for name, method in methods.items():
        progress(name)
        first = pointwise(method)
        times = [time_for(first, validation, goal) for goal in setting.grid]
        trials = [trial_of(setting, method, T, goal) for T, goal in zip(times, setting.grid, strict=True)]
        T = Curve(trials, base_trial).chosen.T
        outcome = continued(setting, setting.prompts, setting.samples, method, T)
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


EQUAL_DISPLACEMENTS = (0.1, 0.2, 0.4)
EQUAL_PERPLEXITIES = (1.1, 1.2, 1.3)


def curve_table(study: Study) -> str:
    """Shares on the validation prompts at equal displacements and at equal perplexities, a line per method."""
    heads = [f"moved {x:g}" for x in EQUAL_DISPLACEMENTS] + [f"ppl {x:g}×" for x in EQUAL_PERPLEXITIES]
    lines = [f"{'desired %':<16}" + "".join(f"{head:>11}" for head in heads)]
    for row in study.rows[1:]:
        curve = Curve(row.trials, study.unsteered_trial)
        shares = [curve.at(x).share for x in EQUAL_DISPLACEMENTS]
        shares += [curve.at_perplexity(x).share for x in EQUAL_PERPLEXITIES]
        lines.append(f"{row.name:<16}" + "".join(f"{100 * share:>11.1f}" for share in shares))
    return "\n".join(lines)


def as_json(study: Study) -> dict[str, Any]:
    """The table as plain values, with the trials and without the continuations."""
    rows = [{k: v for k, v in vars(row).items() if k != "continuations"} for row in study.rows]
    return {
        "unsteered_trial": vars(study.unsteered_trial),
        "rows": [row | {"trials": [vars(trial) for trial in row["trials"]]} for row in rows],
    }


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
    moved = test if method is None else pointwise(method).steer(test, T=T)
    barrier = None if method is None else pointwise(method).barrier
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
