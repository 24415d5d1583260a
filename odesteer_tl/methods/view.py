"""The unified view: what a method's h and v are, and what it costs and needs, as one line of a table.

Each method carries its line, `Method.view`; `unified_table` sets them below each other, so that the table of
docs/methods.md is the code's own. The laws that `norm` names are tested for every method.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Norm = Literal["any", "‖a‖", "√(‖a‖² + T²)", "√(‖a‖² + T²/steps)"]
"""‖a(T)‖, by the rule that holds for every a. The laws with T hold where the features are of a/‖a‖."""

Needs = Literal["one side", "both sides", "pairs", "pairs with queries", "a barrier", "texts and the model"]
"""The least that a fit takes. Methods that would rather have more say so in their fit."""


@dataclass(frozen=True)
class View:
    """One line: the published `name`, `h`, `v` and `steps` as in ȧ = v(a), what becomes of the `norm`, what a fit
    `needs`, and the `source`. Raises ValueError for a norm or a need that is none of those above."""

    name: str
    h: str
    v: str
    steps: str
    norm: Norm
    needs: Needs
    source: str

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm) or self.needs not in get_args(Needs):
            raise ValueError(f"norm and needs are of {get_args(Norm)} and {get_args(Needs)}; got {self}.")


HEADS = {"name": "method", "norm": "‖a(T)‖"}
"""The heads of columns that are not called as their field."""


def unified_table(methods: Iterable[Any]) -> str:
    """The lines of the methods' views as a table in Markdown, in the order given; those without a view are left out."""
    names = [f.name for f in fields(View)]
    lines = ["| " + " | ".join(HEADS.get(name, name) for name in names) + " | class |", "|---" * (len(names) + 1) + "|"]
    for method in (each for each in methods if hasattr(each, "view")):
        cells = [getattr(method.view, name).replace("|", "\\|") for name in names]
        lines.append("| " + " | ".join(cells) + f" | `{method.__name__}` |")
    return "\n".join(lines)
