"""The unified view: what a method's h and v are, what it costs and needs, and what its T counts, as a line of a table.

Each method carries its line, `Method.view`; `unified_table` sets them below each other, so that the table of
docs/methods.md is the code's own. The laws that `norm` names are tested for every method. What the command line, a
comparison and the parity table know of a strength they read from the `Unit` of the view.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Norm = Literal["any", "‖a‖", "√(‖a‖² + T²)", "√(‖a‖² + T²/steps)"]
"""‖a(T)‖, by the rule that holds for every a. The laws with T hold where the features are of a/‖a‖."""

Needs = Literal["one side", "both sides", "pairs", "pairs with queries", "a barrier", "texts and the model"]
"""The least that a fit takes. Methods that would rather have more say so in their fit."""


@dataclass(frozen=True)
class Unit:
    """What T counts.

    `name`: as in "T counts …". `start`: where to look first, in the words of the command line. `whole`: the T that does
    what was fitted or published; None where T is a length, or counts one, so that a part of ‖a‖ says more. `tried`: the
    strengths that a comparison tries; None for those that move activations by given displacements. `bounds`: the least
    and the largest T of a method for which ‖a‖ says nothing: relative_T is refused.
    """

    name: str
    start: str
    whole: float | None = None
    tried: tuple[float, ...] | None = None
    bounds: tuple[float, float] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def limits(self) -> tuple[str, float, float] | None:
        """What `Strength.check` takes: what it says, and the bounds; None where every T is one."""
        if self.bounds is None:
            return None
        least, most = self.bounds
        between = "" if math.isinf(most) else f", from {least:g} to {most:g}"
        said = f"T counts {self.name} here{between}, whatever ‖a‖: give T, for example T={self.whole or most:.3g}"
        return f"{said}, and no relative_T", least, most


LENGTH = Unit("the length of the way", "--relative-T 0.05 to 0.4 is where to look first.")
FRACTION = Unit(
    "fractions of the map", "--T 1 is the published map; less goes a part of the way.",
    whole=1.0, tried=(0.25, 0.5, 1.0),
)  # fmt: skip
SET_POINTS = Unit("set-points", "T = 1 is the set-point of the fit; look from 0.5 to 4.", whole=1.0)


@dataclass(frozen=True)
class View:
    """One line: the published `name`, `h`, `v` and `steps` as in ȧ = v(a), what becomes of the `norm`, what a fit
    `needs`, the `source`, and what `T` counts. Raises ValueError for a norm or a need that is none of those above."""

    name: str
    h: str
    v: str
    steps: str
    norm: Norm
    needs: Needs
    source: str
    T: Unit = LENGTH

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm) or self.needs not in get_args(Needs):
            raise ValueError(f"norm and needs are of {get_args(Norm)} and {get_args(Needs)}; got {self}.")


HEADS = {"name": "method", "norm": "‖a(T)‖", "T": "T counts"}
"""The heads of columns that are not called as their field."""


def unified_table(methods: Iterable[Any]) -> str:
    """The lines of the methods' views as a table in Markdown, in the order given; those without a view are left out."""
    names = [f.name for f in fields(View)]
    lines = ["| " + " | ".join(HEADS.get(name, name) for name in names) + " | class |", "|---" * (len(names) + 1) + "|"]
    for method in (each for each in methods if hasattr(each, "view")):
        cells = [str(getattr(method.view, name)).replace("|", "\\|") for name in names]
        lines.append("| " + " | ".join(cells) + f" | `{method.__name__}` |")
    return "\n".join(lines)
