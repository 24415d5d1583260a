"""Reports: what a steering block did, counted in the same way for every library."""

from dataclasses import dataclass


@dataclass(eq=False)
class Report:
    """What a steering block did, readable inside the block and after it.

    `tokens_steered`: per layer written, the number of distinct (row, position) pairs over all prompts of the block.
    Tokens that a batch generates for a row that has ended count too: the model computes them, though no text shows
    them. `hooks_removed`: reset_hooks() or clear_edits() inside the block removed the steering; set at its end.
    """

    tokens_steered: dict[int, int]
    hooks_removed: bool = False
