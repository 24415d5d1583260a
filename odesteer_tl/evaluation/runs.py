"""One row under one seed: the test prompts continued at the strengths that spend the budgets, and judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Samples
from odesteer_tl.backends import read_site
from odesteer_tl.control.diagnostics.record import recorded
from odesteer_tl.evaluation.continuations import Outcome, Setting, Steerer, continued, continued_at, first_of
from odesteer_tl.evaluation.displacement import displacements
from odesteer_tl.evaluation.entries import Prompted
from odesteer_tl.evaluation.levels import Level
from odesteer_tl.evaluation.metrics import bootstrap_interval, distinct
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import Method, PointwiseMethod
from odesteer_tl.portable.sites import Site


@dataclass(frozen=True, eq=False)
class Base:
    """The unsteered model under one seed, and the activations that displacements are measured on."""

    setting: Setting
    outcome: Outcome
    test: Float[Tensor, "n_test d_model"]


@dataclass(frozen=True, eq=False)
class Run:
    """The results on the test prompts under one seed, at the strength of one `level`; None for the unsteered model.

    `displacement`: the mean ‖a(T) − a‖/‖a‖ of the prompts' last tokens, None for a prefix. `share` of the continuations
    that the judge calls desired, and its `shift` from the unsteered model under the same seed, with 95 % bootstrap
    intervals over prompts. `desired`: 1.0 where judged desired. The unsteered model may have more samples than a run.
    """

    seed: int
    level: Level | None
    displacement: float | None
    share: float
    share_interval: tuple[float, float]
    shift: float
    shift_interval: tuple[float, float]
    perplexity: float
    perplexity_ratio: float
    distinct1: float
    distinct2: float
    distinct3: float
    tokens_per_second: float
    desired: Float[Tensor, "prompts samples"]
    continuations: list[str]

    @property
    def kl(self) -> float:
        """What the strength costs on the validation prompts, in nats."""
        return 0.0 if self.level is None else self.level.kl


def prompt_activations(setting: Setting) -> Samples:
    """The activations of the test prompts' last tokens, unsteered, as they are generated from."""
    return read_site(setting.model, setting.prompts, setting.layer, chat_template=setting.chat)


def unsteered(base: Base) -> Run:
    """The run of the unsteered model itself: no strength, no displacement, no shift."""
    return _run(base, base.outcome, None, 0.0)


def run_at(base: Base, steerer: Steerer | Prompted, level: Level, positions: Positions = "decoding") -> Run:
    """Continue the test prompts at the strength of the level, or after its prefix, and judge them."""
    setting, method = base.setting, None if isinstance(steerer, Prompted) else steerer
    samples = setting.samples_at(level.budget)
    outcome = continued(setting, setting.prompts, samples, method, level.strength, level.prefix, positions)
    return _run(base, outcome, level, None if method is None else _moved(base, method, level, positions))


def runs_at(base: Base, method: Method, levels: Sequence[Level], positions: Positions = "decoding") -> list[Run]:
    """`run_at` at each level of one budget's samples, none of them a prefix, all from one batch."""
    setting, strengths = base.setting, [level.strength for level in levels]
    samples = setting.samples_at(levels[0].budget)
    outcomes = continued_at(setting, setting.prompts, samples, method, strengths, positions)  # type: ignore[arg-type]
    return [
        _run(base, outcome, level, _moved(base, method, level, positions))
        for outcome, level in zip(outcomes, levels, strict=True)
    ]


def _moved(base: Base, steerer: Steerer, level: Level, positions: Positions) -> float:
    """The mean ‖a(T) − a‖/‖a‖ of the test prompts' last tokens. Of a closed loop, which acts at all its layers, it is
    measured in the model at the comparison's layer."""
    method, setting = first_of(steerer), base.setting
    if isinstance(method, PointwiseMethod):
        end = method.steer(base.test, level.strength)
    else:
        site = [Site(setting.layer)]
        end = recorded(
            setting.model, setting.prompts, site, method, level.strength, positions=positions,
            chat_template=setting.chat,
        )[0]  # fmt: skip
    return float(displacements(base.test, end.to(base.test)).mean())


def _run(base: Base, outcome: Outcome, level: Level | None, displacement: float | None) -> Run:
    texts, shares = outcome.continuations, outcome.desired.mean(1, keepdim=True)
    shift = shares - base.outcome.desired.mean(1, keepdim=True)
    seed = base.setting.seed
    return Run(
        seed=seed,
        level=level,
        displacement=displacement,
        share=outcome.share,
        share_interval=bootstrap_interval(outcome.desired, seed=seed),
        shift=float(shift.mean()),
        shift_interval=bootstrap_interval(shift, seed=seed),
        perplexity=outcome.perplexity,
        perplexity_ratio=outcome.perplexity / base.outcome.perplexity,
        distinct1=distinct(texts, 1),
        distinct2=outcome.distinct2,
        distinct3=distinct(texts, 3),
        tokens_per_second=outcome.tokens_per_second,
        desired=outcome.desired,
        continuations=texts,
    )
