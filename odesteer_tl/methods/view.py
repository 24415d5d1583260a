"""The unified view: h, v, cost and needs of a method, and what its T counts, as one line of a table.

Each method has its line, `Method.view`; `unified_table` prints them all, which is the table of docs/methods.md. The law
in `norm` is tested for every method. The command line, comparisons and the parity table read the unit of T from the
`Unit` of the view.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Norm = Literal["any", "‖a‖", "√(‖a‖² + T²)", "√(‖a‖² + T²/steps)"]
"""‖a(T)‖ for every a. The laws with T hold for features of a/‖a‖."""

Needs = Literal["one side", "both sides", "pairs", "pairs with queries", "a barrier", "texts and the model"]
"""The least data that a fit takes; the docstring of a fit says if more data help."""


@dataclass(frozen=True)
class Unit:
    """What T counts.

    `name`: completes "T counts …". `start`: which T to try first, in the words of the command line. `whole`: the T of
    the fitted or published map; None where T is a length or a number of lengths, so that a share of ‖a‖ says more.
    `is_map`: whether the method is checked as a `whole`, and not at a given displacement. `bounds`: the least and the
    largest T of a method whose T does not relate to ‖a‖; relative_T is then refused.
    """

    name: str
    start: str
    whole: float | None = None
    is_map: bool = False
    bounds: tuple[float, float] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def limits(self) -> tuple[str, float, float] | None:
        """The message and the bounds for `Strength.check`; None where every T is allowed."""
        if self.bounds is None:
            return None
        least, most = self.bounds
        span = "" if math.isinf(most) else f", from {least:g} to {most:g}"
        message = f"T counts {self.name} here{span}, whatever ‖a‖: pass T, for example T={self.whole or most:.3g}"
        return f"{message}, and no relative_T", least, most


LENGTH = Unit("the length of the way", "--relative-T 0.05 to 0.4 is where to look first.")
FRACTION = Unit(
    "fractions of the map", "--T 1 is the published map; less goes a part of the way.",
    whole=1.0, is_map=True,
)  # fmt: skip
SET_POINTS = Unit("set-points", "T = 1 is the set-point of the fit; look from 0.5 to 4.", whole=1.0)


@dataclass(frozen=True)
class View:
    """One line: the published `name`, `h`, `v` and `steps` as in ȧ = v(a), the `norm` ‖a(T)‖, what a fit `needs`, the
    `source`, and what `T` counts. Raises ValueError for a norm or a need that is not listed above."""

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
            raise ValueError(f"norm and needs are among {get_args(Norm)} and {get_args(Needs)}; got {self}.")


HEADS = {"name": "method", "norm": "‖a(T)‖", "T": "T counts"}
"""The headings of columns that differ from the name of their field."""


def unified_table(methods: Iterable[Any]) -> str:
    """The views of the methods as a Markdown table, in the order given; methods without a view are left out."""
    names = [f.name for f in fields(View)]
    lines = ["| " + " | ".join(HEADS.get(name, name) for name in names) + " | class |", "|---" * (len(names) + 1) + "|"]
    for method in (candidate for candidate in methods if hasattr(candidate, "view")):
        cells = [str(getattr(method.view, name)).replace("|", "\\|") for name in names]
        lines.append("| " + " | ".join(cells) + f" | `{method.__name__}` |")
    return "\n".join(lines)
