"""`calibrate`: the strength at which steering spends a given budget of KL divergence."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from odesteer_tl._shapes import Samples
from odesteer_tl.backends.checks import check_layer
from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.tokenize import ChatTemplate, Texts
from odesteer_tl.evaluation.crossing import Crossing, first_crossing
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import Method, PointwiseMethod
from odesteer_tl.methods.view import LENGTH
from odesteer_tl.portable.method_list import check_method
from odesteer_tl.portable.sites import Site, site_name
from odesteer_tl.portable.strength import Strength

GUESS = 0.1
"""Where the search begins for methods whose T is a length: a tenth of each activation's norm."""


@dataclass(frozen=True)
class Measured:
    """What one strength does to the steered tokens: `kl` as the budget counts it, `kl_mean` and `kl_p95`, in nats. Of
    methods that act at one site, also the medians of h before and after, and of ‖a(T) − a‖/‖a‖; else None."""

    value: float
    kl: float
    kl_mean: float
    kl_p95: float
    h_start: float | None = None
    h_end: float | None = None
    displacement: float | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """The `strength` that spends the budget `kl`, and the `curve` of all strengths that were tried, ascending.

        calibration = ot.calibrate(model, method, prompts, kl=0.1)
        with ot.steering(model, method, calibration.strength): ...

    `spent`: what the strength costs, in nats; `reached`: within 5 % of the budget. `monotone`: the cost never falls
    along the curve; else the strength is the smallest that spends the budget. `quantile`: None for the mean over
    `tokens` steered tokens. `rounds` of forward passes took `seconds`, generation of the continuations included.
    """

    strength: Strength
    kl: float
    spent: float
    reached: bool
    monotone: bool
    curve: tuple[Measured, ...]
    quantile: float | None
    tokens: int
    rounds: int
    seconds: float

    def __str__(self) -> str:
        name = "T" if self.strength.relative_T is None else "relative_T"
        counted = "mean" if self.quantile is None else f"{100 * self.quantile:g} % quantile"
        said = f"{name} = {self.strength.value:.4g} spends {self.spent:.3g} of {self.kl:g} nats ({counted} of "
        lines = [f"{said}KL(unsteered ‖ steered) over {self.tokens} tokens; {self.seconds:.0f} s)"]
        lines.append(f"{name:>10}  KL mean    p95  displacement     h")
        for point in self.curve:
            moved = "" if point.displacement is None else f"{point.displacement:.3f}"
            h = "" if point.h_start is None else f"{point.h_start:.3g} → {point.h_end:.3g}"
            lines.append(
                f"{point.value:>10.4g} {point.kl_mean:>8.3g} {point.kl_p95:>6.3g} {moved:>13}     {h}".rstrip()
            )
        return "\n".join(lines)

    def plot(self, file: str | Path) -> None:
        """Write a picture of the curve: KL against strength, both in logarithms, with the budget. Raises ValueError for
        a budget of 0, for which nothing was measured."""
        from odesteer_tl.evaluation.plots import plot_calibration

        if not self.curve:
            raise ValueError("A budget of 0 nats has no curve to plot: T = 0 was not sought.")
        plot_calibration(self, file)


def calibrate(
    model: Any,
    method: Any,
    prompts: Texts,
    kl: Any = 0.1,
    *,
    quantile: float | None = None,
    relative: bool | None = None,
    positions: Positions = "decoding",
    layer: int | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 24,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
    blocks: Any = None,
) -> Calibration:
    """The smallest strength at which steering costs `kl` nats: KL(unsteered ‖ steered) of the next-token distribution,
    its mean over the steered tokens, or their `quantile`.

        calibration = ot.calibrate(model, method, prompts, kl=0.1)
        ot.generate(model, prompts, method, calibration.strength)

    The model continues the prompts once, greedily and unsteered, and every strength is judged on these texts, several
    in one pass. `relative`: whether relative_T is sought, and not T; None: where T is a length. Prompts,
    `chat_template` and `system` as for `generate`; `positions`, `layer` and `blocks` as for `steering`.

    A budget of 0 is T = 0. Inside a steering block "unsteered" is as steered there. Raises ValueError for a budget
    below 0, a quantile outside (0, 1), a list of methods, and a method that spends other than the budget at every
    strength it takes, as a map that is too weak or a closed loop that is never off.
    """
    start = time.perf_counter()
    if isinstance(method, Sequence):
        raise ValueError("calibrate takes one method: several are one as ot.Layers(parts=(method_a, method_b)).")
    check_method(method)
    if not (isinstance(kl, (int, float)) and math.isfinite(kl) and kl >= 0):
        raise ValueError(f"kl is a budget in nats, 0 or more, such as 0.1; got {kl}.")
    if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"quantile lies between 0 and 1, as 0.95 does; got {quantile}.")
    view = getattr(method, "view", None)
    unit = LENGTH if view is None else view.T
    relative = (unit is LENGTH and not method.several) if relative is None else relative
    _strength(0.0, relative).check(limits=unit.limits if relative else None)
    if layer is not None:
        check_layer(model, layer, blocks)
    if kl == 0:
        zero = Strength(relative_T=0.0) if relative else Strength(0.0)
        return Calibration(zero, 0.0, 0.0, True, True, (), quantile, 0, 0, time.perf_counter() - start)
    written = generate(
        model, prompts, max_new_tokens=max_new_tokens, do_sample=False, batch_size=batch_size, prepend_bos=prepend_bos,
        chat_template=chat_template, system=system, blocks=blocks,
    )  # fmt: skip
    texts = SteeredTexts.of(model, written, positions, layer, blocks)
    read = _read(texts, method, layer, batch_size)
    curve: dict[float, Measured] = {}

    def measure(values: Sequence[float]) -> list[float]:
        strengths = [_strength(value, relative) for value in values]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "T moves an activation", UserWarning)  # these T are tried, not chosen
            divergences = texts.divergences(method, strengths, batch_size)
        for value, strength, own in zip(values, strengths, divergences, strict=True):
            mean, p95 = float(own.mean()), float(own.quantile(0.95))
            cost = mean if quantile is None else float(own.quantile(quantile))
            curve[value] = Measured(value, cost, mean, p95, *_moved(method, read, strength))
        return [curve[value].kl for value in values]

    guess = GUESS if relative else method.usual_T / 2
    most = math.inf if unit.bounds is None or relative else unit.bounds[1]
    crossing = first_crossing(measure, kl, guess, most)
    if not crossing.reached:
        raise ValueError(_not_reached(method, kl, crossing, relative))
    points = tuple(curve[value] for value in sorted(curve))
    tokens, seconds = int(texts.named.sum()), time.perf_counter() - start
    return Calibration(
        _strength(crossing.strength, relative), float(kl), crossing.cost, True, crossing.monotone, points, quantile,
        tokens, crossing.rounds, seconds,
    )  # fmt: skip


def _strength(value: float, relative: bool) -> Strength:
    return Strength(relative_T=value) if relative else Strength(value)


def _read(texts: SteeredTexts, method: Method, layer: int | None, batch_size: int) -> Samples | None:
    """The unsteered activations at the method's one site; None where it has several."""
    at = method.layer if layer is None else layer
    if not isinstance(method, PointwiseMethod) or method._of_query is not None or at is None:
        return None
    site: Any = site_name(method.origin.hook_name)
    return texts.activations(Site(at, site), batch_size)


@torch.no_grad()
def _moved(method: Method, a: Samples | None, strength: Strength) -> tuple[float | None, float | None, float | None]:
    """Medians over the steered tokens: h before and after, and ‖a(T) − a‖/‖a‖."""
    if a is None or not isinstance(method, PointwiseMethod):
        return None, None, None
    end = method.steer(a, strength)
    moved = float(((end - a).norm(dim=-1) / a.norm(dim=-1)).median())
    barrier = method.to(a.device, a.dtype).barrier
    if barrier is None:
        return None, None, moved
    return float(barrier.value(a).median()), float(barrier.value(end).median()), moved


def _not_reached(method: Method, kl: float, crossing: Crossing, relative: bool) -> str:
    name, said = type(method).__name__, "relative_T" if relative else "T"
    least, most = min(crossing.costs.values()), max(crossing.costs.values())
    span = f"{said} from {min(crossing.costs):.3g} to {max(crossing.costs):.3g}"
    if most < kl:
        return (
            f"{name} does not spend {kl:g} nats of KL: {most:.3g} at most, for {span}. Give a smaller budget, kl=, or "
            "another layer or method."
        )
    if least > kl:
        return (
            f"{name} spends more than {kl:g} nats of KL at every strength tried: {least:.3g} at least, for {span}. "
            "Give a larger budget, kl=, or another method (a closed loop also acts at T = 0)."
        )
    return (
        f"{name} jumps over {kl:g} nats of KL: from {crossing.cost:.3g} at {said} {crossing.strength:.4g} to its "
        f"neighbour's, after {crossing.rounds} rounds. Give more prompts, or another budget, kl=."
    )
