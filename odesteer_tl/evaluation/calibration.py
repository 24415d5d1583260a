"""What `calibrate` finds: the strength, the curve that it was read from, and the method that carries it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from odesteer_tl.methods import Method
from odesteer_tl.portable.strength import Strength
from odesteer_tl.remote.checks import StaysHere

Sought = Literal["T", "relative_T", "factor"]
"""What is sought: T, relative_T, or the one number by which all strengths of a list are multiplied."""


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
class Calibration(StaysHere):
    """The `strength` that spends the budget `kl`, and the `curve` of all strengths that were tried, ascending.

        calibration = ot.calibrate(model, method, prompts, kl=0.1)
        with ot.steering(model, calibration.method): ...                    # no T: the method carries the strength
        with ot.steering(model, method, calibration.strength): ...          # the same

    `method` is `ot.Calibrated`; of a list of methods, `ot.Layers` of calibrated parts, and `strength` is then the
    factor by which all its strengths are multiplied (`sought`).
    `spent`: what the strength costs, in nats; `reached`: within 5 % of the budget. `monotone`: the cost never falls
    along the curve; else the strength is the smallest that spends the budget. `quantile`: None for the mean over
    `tokens` steered tokens. `rounds` of forward passes took `seconds`, generation of the continuations included.
    """

    usual_name: ClassVar[str] = "calibration"

    method: Method
    strength: Strength
    sought: Sought
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
        name = self.sought
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

        plot_calibration(self, file)
