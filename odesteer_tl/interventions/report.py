"""Reports: what a steering block did, counted in the same way whichever library runs the model."""

from dataclasses import dataclass


@dataclass(eq=False)
class Report:
    """What a steering block did, readable inside the block and after it.

    `tokens_steered`: per layer written, distinct (row, position) pairs, over all prompts of the block. What a batch
    still generates for a row that has ended counts too: the model computes it, though no text shows it.
    `hooks_removed`: reset_hooks() or clear_edits() inside the block took the steering away; known at its end.
    """

    tokens_steered: dict[int, int]
    hooks_removed: bool = False
