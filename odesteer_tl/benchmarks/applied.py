"""What a row of a benchmark does to the model: methods at a strength, a prefix before each prompt, or nothing."""

from dataclasses import dataclass
from typing import Any

from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import Method
from odesteer_tl.portable.strength import Strength


@dataclass(frozen=True, eq=False)
class Applied:
    """`methods` at a `strength`: item i is steered by number i modulo their number. `prefix`: what stands, with a
    space after it, before each prompt. All empty: the model as it is."""

    methods: tuple[Method, ...] = ()
    strength: Strength | None = None
    prefix: str = ""
    positions: Positions = "decoding"

    def prompt(self, text: str) -> str:
        """The prompt as the model reads it."""
        return f"{self.prefix} {text}" if self.prefix else text

    def key(self) -> tuple[Any, ...]:
        """The same for rows that do the same, as long as the methods live."""
        strength = None if self.strength is None else (self.strength.T, self.strength.relative_T)
        return (*map(id, self.methods), strength, self.prefix, repr(self.positions))

    def on(self, item: int) -> list[tuple[Any, Strength]]:
        """The methods, with their strengths, that steer an item; none where nothing is steered."""
        if not self.methods or self.strength is None:
            return []
        return [(self.methods[item % len(self.methods)], self.strength)]


UNCHANGED = Applied()
"""The model as it is."""
