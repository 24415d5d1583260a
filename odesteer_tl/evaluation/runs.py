"""One row under one seed: a fixed number of trials, one rule for the strength, then the test prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Samples
from odesteer_tl.backends import read_site
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.control.diagnostics.record import recorded
from odesteer_tl.evaluation.continuations import Outcome, Setting, Steerer, continued, first_of, pointwise, trial_of
from odesteer_tl.evaluation.curve import Curve
from odesteer_tl.evaluation.entries import Prompted
from odesteer_tl.evaluation.metrics import distinct
from odesteer_tl.evaluation.strength import (
    Trial,
    best,
    displacements,
    median_displacement,
    nearest,
    reach,
    strengths_tried,
)
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import PointwiseMethod
from odesteer_tl.methods.view import FRACTION
from odesteer_tl.portable.sites import Site

DISPLACEMENTS = (0.1, 0.2, 0.4)
"""The strengths tried, as median displacements of the validation prompts' last tokens."""
FRACTIONS = FRACTION.tried or ()
"""The strengths tried for a map, as fractions of it."""
PRECISION = 0.02
"""The relative precision of a closed loop's T; the model runs once for every T tried."""
SCAN = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The T at which the smallest displacement of a closed loop is searched for."""


@dataclass(frozen=True)
class Level:
    """One trial to make: T and its median displacement, or a prefix; `reached`: whether the goal can be reached."""

    T: float
    displacement: float
    prefix: str = ""
    reached: bool = True


@dataclass(frozen=True, eq=False)
class Base:
    """The unsteered model under one seed, and the activations that displacements are measured on."""

    setting: Setting
    trial: Trial
    outcome: Outcome
    validation: Float[Tensor, "n_validation d_model"]
    test: Float[Tensor, "n_test d_model"]


@dataclass(frozen=True, eq=False)
class Run:
    """The results on the test prompts under one seed.

    `T` and `displacement` (mean ‖a(T) − a‖/‖a‖ of the prompts' last tokens) are None for a prefix. `share` and `shift`
    are in [−1, 1], `shift` and `perplexity_ratio` against the unsteered model under the same seed. `allowed`: some
    trial was within the rule's bounds. `reached`: all displacements were reached. `desired`: 1.0 where judged desired.
    """

    seed: int
    T: float | None
    displacement: float | None
    prefix: str
    share: float
    shift: float
    perplexity_ratio: float
    distinct1: float
    distinct2: float
    distinct3: float
    allowed: bool
    reached: bool
    trials: tuple[Trial, ...]
    desired: Float[Tensor, "prompts samples"]


def base_of(setting: Setting) -> Base:
    """Continue validation and test prompts without steering."""
    return Base(
        setting,
        trial_of(setting, None, 0.0, 0.0),
        continued(setting, setting.prompts, setting.samples, None, None),
        read_site(setting.model, setting.validation_prompts, setting.layer),
        read_site(setting.model, setting.prompts, setting.layer),
    )


def unsteered(base: Base) -> Run:
    """The row of the unsteered model itself: T = 0, no displacement, no shift."""
    return _run(base, base.outcome, Level(0.0, 0.0), 0.0, (base.trial,), allowed=True, reached=True)


def run_row(base: Base, steerer: Steerer | Prompted, levels: Sequence[Level], positions: Positions = "decoding") -> Run:
    """Try every level on the validation prompts, choose a strength by the rule (of prefixes, the best one), and judge
    the test prompts."""
    setting, method = base.setting, None if isinstance(steerer, Prompted) else steerer
    trials = [trial_of(setting, method, level.T, level.displacement, level.prefix, positions) for level in levels]
    if method is None:
        chosen_trial = best(trials, base.trial)
        allowed = chosen_trial.allowed(base.trial)
        level = next(level for level, trial in zip(levels, trials, strict=True) if trial is chosen_trial)
    else:
        curve = Curve(trials, base.trial, rests=not isinstance(first_of(method), FeedbackController))
        allowed, level = curve.allowed, Level(curve.chosen.T, curve.chosen.displacement)
    outcome = continued(
        setting, setting.prompts, setting.samples, method, None if method is None else level.T, level.prefix, positions
    )
    displacement = None if method is None else _moved(base, method, level.T, positions, test=True)
    return _run(
        base, outcome, level, displacement, tuple(trials),
        allowed=allowed, reached=all(level.reached for level in levels),
    )  # fmt: skip


def levels_at(base: Base, steerer: Steerer | Prompted, positions: Positions = "decoding") -> list[Level]:
    """Three strengths, the weakest first, for the validation prompts; the same under every seed of the setting."""
    if not isinstance(steerer, Prompted) and isinstance(first_of(steerer), FeedbackController):
        return _loop_levels(base, steerer, positions)
    return levels_of(steerer, base.validation)


def _loop_levels(base: Base, steerer: Steerer, positions: Positions) -> list[Level]:
    """Three strengths of a closed loop, upwards from the T with the smallest displacement.

    T = 0 drives the features to 0. So with growing T the displacement first falls, then rises.
    """

    def moved(T: float) -> float:
        return _moved(base, steerer, T, positions, test=False)

    least = min(SCAN, key=moved)
    nearest_levels = [nearest(moved, goal, max(1.0, 2 * least), PRECISION, least) for goal in DISPLACEMENTS]
    return [
        Level(T, reached, reached=reached == goal)
        for (T, reached), goal in zip(nearest_levels, DISPLACEMENTS, strict=True)
    ]


def _moved(base: Base, steerer: Steerer, T: float, positions: Positions, test: bool) -> float:
    """‖a(T) − a‖/‖a‖ of the prompts' last tokens: the mean for the test prompts, else the median. For a closed loop it
    is measured in the model at the comparison's layer, while the loop acts at all its layers."""
    method, a = first_of(steerer), base.test if test else base.validation
    if isinstance(method, PointwiseMethod):
        end = method.steer(a, T=T)
    else:
        setting = base.setting
        prompts = setting.prompts if test else setting.validation_prompts
        end = recorded(setting.model, prompts, [Site(setting.layer)], method, T, positions=positions)[0].to(a)
    moved = displacements(a, end)
    return float(moved.mean() if test else moved.median())


def levels_of(steerer: Steerer | Prompted, a: Samples) -> list[Level]:
    """Three strengths, the weakest first: by displacements of `a`, by the unit of T, or prefixes."""
    if isinstance(steerer, Prompted):
        return [Level(0.0, 0.0, prefix) for prefix in steerer.prefixes]
    method = pointwise(steerer)
    if (tried := strengths_tried(method)) is not None:
        return [Level(T, median_displacement(method, a, T)) for T in tried]
    reached_levels = [reach(method, a, goal) for goal in DISPLACEMENTS]
    return [
        Level(T, moved, reached=moved == goal) for (T, moved), goal in zip(reached_levels, DISPLACEMENTS, strict=True)
    ]


def _run(
    base: Base,
    outcome: Outcome,
    level: Level,
    displacement: float | None,
    trials: tuple[Trial, ...],
    allowed: bool,
    reached: bool,
) -> Run:
    texts = outcome.continuations
    return Run(
        seed=base.setting.seed,
        T=None if level.prefix else level.T,
        displacement=displacement,
        prefix=level.prefix,
        share=outcome.share,
        shift=float((outcome.desired - base.outcome.desired).mean()),
        perplexity_ratio=outcome.perplexity / base.outcome.perplexity,
        distinct1=distinct(texts, 1),
        distinct2=distinct(texts, 2),
        distinct3=distinct(texts, 3),
        allowed=allowed,
        reached=reached,
        trials=trials,
        desired=outcome.desired,
    )
