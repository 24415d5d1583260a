"""Reports: what a steering block did, counted in the same way whichever library runs the model."""

from dataclasses import dataclass

from odesteer_tl.positions import Selection


@dataclass(eq=False)
class Report:
    """What a steering block did, readable inside the block and after it.

    `tokens_steered`: per layer written, distinct (row, position) pairs, over all prompts of the block. What a batch
    still generates for a row that has ended counts too: the model computes it, though no text shows it.
    `hooks_removed`: reset_hooks() or clear_edits() inside the block took the steering away; known at its end.
    """

    tokens_steered: dict[int, int]
    hooks_removed: bool = False


class Tally:
    """Counts distinct (row, position) pairs per prompt: a token steered in ten passes counts once."""

    def __init__(self) -> None:
        self._prompt, self._earlier, self._pairs = -1, 0, set[tuple[int, int]]()

    def add(self, selection: Selection) -> None:
        """Count the tokens of one pass."""
        if selection.prompt != self._prompt:
            self._earlier, self._prompt, self._pairs = self.total, selection.prompt, set()
        self._pairs.update(zip(selection.rows.tolist(), selection.positions.tolist(), strict=True))

    @property
    def total(self) -> int:
        """Pairs counted so far, over all prompts."""
        return self._earlier + len(self._pairs)
