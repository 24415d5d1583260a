"""The engine that carries out edits in forward passes: in hooks and in graphs, on this machine and on servers.

A backend says that a pass begins and which of its tokens are chosen (`Selection`), hands each value over as the model
comes to its site (`PassEdits.act`), and puts what it gets back in its place. This travels to remote servers, and works
with plain classes and torch alone. Indices are on the CPU and copied without waiting, so that no device is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.precision import in_full
from odesteer_tl.portable.sites import place_of
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import chosen_by
from odesteer_tl.portable.token_tracking import PromptCache, TokenTrack


class Selection:
    """The chosen tokens of one pass, on the CPU: `rows`, `columns` of the pass and `positions` in the row [chosen].

    `everything`: all columns of all rows, so that nothing needs to be picked out. `found` and `lengths` [batch]: where
    the pass stands, and how many tokens the prompts have. `prompt` numbers the prompts seen. `chosen` [batch, pos] is a
    bool mask.
    """

    def __init__(self, chosen: Tensor, found: TokenTrack, lengths: Tensor) -> None:
        self.rows, self.columns = chosen.nonzero(as_tuple=True)
        self.everything = len(self.rows) == chosen.numel()
        self.positions = found.index.flatten() if self.everything else found.index[self.rows, self.columns]
        self.found, self.lengths, self.prompt, self.shape = found, lengths, found.number, tuple(chosen.shape)
        self._there: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def take(self, value: Tensor) -> Tensor:
        """The chosen activations [chosen, width] of a value [batch, pos, *width]."""
        flat = value.flatten(2)
        return flat.flatten(0, 1) if self.everything else flat[self.index(value.device)]

    def put(self, value: Tensor, new: Tensor) -> Tensor:
        """`value` with the chosen tokens replaced by `new` [chosen, width], out of place, so that derivatives pass."""
        new = new.to(value)
        if self.everything:
            return new.reshape(value.shape)
        return value.flatten(2).index_put(self.index(value.device), new).reshape(value.shape)

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns on a device, copied there once."""
        if device not in self._there:
            self._there[device] = self.rows.to(device, non_blocking=True), self.columns.to(device, non_blocking=True)
        return self._there[device]

    def rows_on(self, device: torch.device) -> Tensor:
        """The rows on a device; made there where all tokens are chosen."""
        if not self.everything:
            return self.index(device)[0]
        return torch.arange(self.shape[0], device=device).repeat_interleave(self.shape[1])


def selected(rule: Any, found: TokenTrack, lengths: Tensor, beams: int = 1) -> Selection:
    """The tokens that a rule of `positions.Positions` chooses in the pass `found`, whose prompts have `lengths` [batch]
    tokens; a mask among the rules has one row, or one per prompt of `beams` rows."""
    return Selection(chosen_by(rule, found.index, lengths, beams) & found.real, found, lengths)


class Tally:
    """Counts distinct (row, position) pairs per layer and prompt: a token steered in ten passes counts once.

    `totals`: of each layer, over all prompts; those of `layers` from the beginning.
    """

    def __init__(self, layers: Iterable[int] = ()) -> None:
        self.totals = dict.fromkeys(layers, 0)
        self._now: dict[int, tuple[int, int, set[Any]]] = {}  # prompt, count of those before, pairs of this one

    def add(self, layer: int, selection: Selection) -> None:
        """Count the tokens of one pass."""
        if layer not in self._now or self._now[layer][0] != selection.prompt:
            self._now[layer] = selection.prompt, self.totals.get(layer, 0), set()
        _, earlier, pairs = self._now[layer]
        pairs.update(zip(selection.rows.tolist(), selection.positions.tolist(), strict=True))
        self.totals[layer] = earlier + len(pairs)


class OwnedEdit:
    """An edit, the number of its method, and for how many rows that method has a T (None: one T for all)."""

    def __init__(self, edit: Edit, owner: int, rows: int | None) -> None:
        self.edit, self.owner, self.rows = edit, owner, rows


def owned_edits(owner: int, method: Any, strength: Strength, layer: int | None) -> list[OwnedEdit]:
    """The edits of the method with the number `owner`. Raises ValueError as `Method.edits` does."""
    edits = method.edits(T=strength.T, relative_T=strength.relative_T, layer=layer)
    return [OwnedEdit(edit, owner, strength.rows) for edit in edits]


def by_place(edits: list[OwnedEdit]) -> dict[tuple[int, int], list[tuple[int, bool, bool]]]:
    """For each place (see `sites.place_of`), in the order of the model: the numbers of the edits that are at work
    there, in their order, each with whether it reads and whether it writes there."""
    found: dict[tuple[int, int], list[tuple[int, bool, bool]]] = {}
    for number, each in enumerate(edits):
        read, write = place_of(each.edit.read), place_of(each.edit.write)
        for place in {read, write}:
            found.setdefault(place, []).append((number, read == place, write == place))
    return dict(sorted(found.items()))


class PassEdits:
    """The edits of one forward pass, carried out as its values come. At one place they act in the order of the list.

    `answers`, by number, of the edits with `of_query`; `tally` counts what is steered, unless the pass is one that was
    counted before (not `counts`). Where a method has a T per prompt, `beams` rows are one prompt's. `done`: the numbers
    of the edits that have written.
    """

    def __init__(
        self,
        edits: list[OwnedEdit],
        selection: Selection,
        answers: dict[int, PromptCache],
        tally: Tally,
        beams: int = 1,
        counts: bool = True,
    ) -> None:
        self.edits, self.selection, self.answers, self.tally = edits, selection, answers, tally
        self.beams, self.counts = beams, counts
        self.done: set[int] = set()
        self._read: dict[int, Tensor] = {}
        self._states: dict[int, State] = {}

    def act(self, here: list[tuple[int, bool, bool]], value: Tensor) -> Tensor | None:
        """The new value [batch, pos, *width] at a place, `here` being what `by_place` says of it; None where it stays
        as it is. Raises ValueError for a T that holds another number of rows, and as the edits do."""
        chosen, new = len(self.selection.rows) > 0, None
        with in_full(value.device):
            for number, reads, writes in here:
                if reads and (chosen or number in self.answers):
                    self._read[number] = self._taken(number, value)
                if writes and chosen:
                    value = new = self._written(number, value)
        return new

    def _taken(self, number: int, value: Tensor) -> Tensor:
        if number not in self.answers:
            return self.selection.take(value)
        now, of_query = self.selection, self.edits[number].edit.of_query
        return self.answers[number].of(now.found, now.found.ends(now.lengths), value.flatten(2), of_query, now.rows)

    def _written(self, number: int, value: Tensor) -> Tensor:
        edit, state = self.edits[number].edit, self._state(number, value.device)
        read = self._read.pop(number).to(value.device)
        value = self.selection.put(value, edit.apply(read, self.selection.take(value), state))
        if self.counts:
            self.tally.add(edit.write.layer, self.selection)
        self.done.add(number)
        return value

    def _state(self, number: int, device: torch.device) -> State:
        """That of the edit's method, which finds whose each token is where it is asked: with one T for all, it is
        not."""
        owner, rows = self.edits[number].owner, self.edits[number].rows
        batch = self.selection.shape[0]
        if owner not in self._states:
            if rows is not None and rows * self.beams != batch:
                raise ValueError(f"T holds {rows} values, the model sees {batch} rows: T needs one value per row.")
            each = 1 if rows is None else self.beams
            self._states[owner] = State(lambda: self.selection.rows_on(device) // each)
        return self._states[owner]
