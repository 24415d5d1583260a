"""Reports: what a steering block did, counted in the same way for every library."""

from dataclasses import dataclass
from itertools import groupby

from odesteer_tl.interventions.pages.token_page import ShownToken, Text, TokenPage, read_once, token_page
from odesteer_tl.interventions.records import Recording, TokenRecord


@dataclass(eq=False)
class Report:
    """What a steering block did, readable inside the block and after it.

    `tokens_steered`: per layer written, the number of distinct (row, position) pairs over all prompts of the block.
    Tokens that a batch generates for a row that has ended count too: the model computes them, though no text shows
    them. `hooks_removed`: reset_hooks() or clear_edits() inside the block removed the steering; set at its end.
    `recording`: what it did to each token, None unless `steering` was called with record=True.
    """

    tokens_steered: dict[int, int]
    hooks_removed: bool = False
    recording: Recording | None = None

    @property
    def records(self) -> list[TokenRecord]:
        """What each edit did to each token that it steered: layer, row, position, token, h before and after,
        displacement. By prompt, row, position and edit. In a beam search a row is the beam that stood there in that
        pass. Raises ValueError unless the block was opened with record=True."""
        return [one for one in self._recorded.tokens if one.steered]

    def show(self) -> TokenPage:
        """The texts that the model saw in the block as a page of HTML, steered tokens marked, coloured by h before and
        after, or by displacement; `.save(path)` writes it, a notebook shows it. `ot.token_map` shows KL too.

        Raises ValueError unless the block was opened with record=True, and where the model did not run in it.
        """
        recording, texts = self._recorded, []
        for (prompt, row), records in groupby(recording.tokens, key=lambda one: (one.prompt, one.row)):
            by_token = groupby(records, key=lambda one: one.position)
            tokens = [shown_token(list(edits), len(recording.edits)) for _, edits in by_token]
            texts.append(Text(f"Prompt {prompt}, row {row}", read_once(tokens, has_h(recording))))
        if not texts:
            raise ValueError("The model did not run inside the block, so there is nothing to show.")
        how = (
            "These texts were computed once, with steering. At each steered token, h before is h of the activation "
            "that reaches the method's site, h after that of what leaves it. The model did not run without steering, "
            "so there is no KL: ot.token_map(model, method, texts) shows it."
        )
        names = [(edit.name, edit.formula) for edit in recording.edits]
        facts = [f"{count} tokens steered at layer {layer}" for layer, count in self.tokens_steered.items()]
        return token_page([how], names, texts, facts=facts, same=True)

    @property
    def _recorded(self) -> Recording:
        if self.recording is None:
            raise ValueError(
                "This block recorded nothing but counts: open it with ot.steering(model, method, ..., record=True). "
                "Around ot.generate, steer by the block: with ot.steering(..., record=True) as report: "
                "ot.generate(model, prompts)."
            )
        return self.recording


def has_h(recording: Recording) -> bool:
    """Whether any of the edits has a barrier."""
    return any(edit.barrier is not None for edit in recording.edits)


def shown_token(records: list[TokenRecord], edits: int, kl: float | None = None) -> ShownToken:
    """A token of a page from its records, one for each of the `edits` that ran."""
    one, of_edit = records[0], {record.edit: record for record in records}
    numbers = [of_edit.get(number) for number in range(edits)]
    return ShownToken(
        one.token or ("" if one.token_id is None else f"⟨{one.token_id}⟩"), one.token_id, one.position, one.generated,
        one.steered, tuple(n and (n.h_before, n.h_after, n.displacement) for n in numbers), kl,
    )  # fmt: skip
