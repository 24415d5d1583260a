"""What `choose_layer` finds: the candidates, each with how well it separates and steers, and the best one."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from odesteer_tl._shapes import Position
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.methods import Method
from odesteer_tl.portable.strength import Strength
from odesteer_tl.remote.checks import StaysHere


@dataclass(frozen=True)
class Candidate:
    """One layer and reading position. `auc` of h on the held-out texts (None without h) and its standard error.

    `shift`, in nats: by how much steering at the budget makes the held-out desired texts likelier than the undesired
    ones, Δ log p(desired) − Δ log p(undesired), with its standard error over texts; None where it was not measured, as
    the AUC was too far below the best, or where no strength spends the budget. `strength` spends the budget there.
    `held_out`: on how many texts of each side that were not fitted on the shift was measured: a quarter, or all in four
    turns. `tied`: whether the shift cannot be told from the largest, by two standard errors of their difference.
    """

    layer: int
    position: Position
    auc: float | None
    auc_error: float | None
    shift: float | None = None
    shift_error: float | None = None
    strength: Strength | None = None
    held_out: tuple[int, int] | None = None
    tied: bool = False


@dataclass(frozen=True, eq=False)
class LayerChoice(StaysHere):
    """The best `layer` and reading `position`, the `method` fitted there on all texts, and all `candidates`.

        choice = ot.choose_layer(model, desired, undesired, method=ot.ODESteer)
        print(choice)                                                   # the table
        method = ot.calibrate(model, choice.method, prompts).method

    `acts`: what the method was fitted on. `budget`: the KL, in nats, at which the shifts were compared.
    `seconds`: what it took.
    """

    usual_name: ClassVar[str] = "choice"

    layer: int
    position: Position
    method: Method
    acts: ContrastiveActivations
    candidates: tuple[Candidate, ...]
    budget: float
    seconds: float

    @property
    def held_out(self) -> tuple[int, int]:
        """On how many texts of each side, not fitted on, the shift was measured where it is best."""
        assert self.best.held_out is not None  # it was measured there
        return self.best.held_out

    @property
    def best(self) -> Candidate:
        """The candidate that was chosen."""
        return next(one for one in self.candidates if (one.layer, one.position) == (self.layer, self.position))

    def __str__(self) -> str:
        best = self.best
        said = f"Layer {self.layer}, position {self.position!r}: at {self.budget:g} nats the shift is {_signed(best)}"
        lines = [f"{said} nats on {self.held_out[0]} and {self.held_out[1]} held-out texts ({self.seconds:.0f} s)"]
        tied = sum(one.tied for one in self.candidates)
        lines.append(f"< the middle layer of {tied} that cannot be told from the best, ~ the others of them")
        lines.append("layer  position      AUC          shift      strength")
        for one in self.candidates:
            auc = "no h" if one.auc is None else f"{one.auc:.2f} ± {one.auc_error:.2f}"
            strength = "" if one.strength is None else f"{one.strength.value:.3g}"
            mark = "   <" if one is best else "   ~" if one.tied else ""
            lines.append(
                f"{one.layer:>5}  {one.position!s:<8}  {auc:>11}  {_signed(one):>13}  {strength:>8}{mark}".rstrip()
            )
        return "\n".join(lines)

    def plot(self, file: str | Path) -> None:
        """Write a picture: shift and AUC against the layer, a line per reading position."""
        from odesteer_tl.evaluation.plots import plot_layers

        plot_layers(self, file)


def _signed(one: Candidate) -> str:
    if one.shift is None or one.shift_error is None or not math.isfinite(one.shift):
        return "not measured"
    return f"{one.shift:+.2f} ± {one.shift_error:.2f}"
