"""The engine that carries out edits in forward passes: in hooks and in graphs, on this machine and on servers.

At the start of a pass a backend makes a `Selection` of the chosen tokens. At each site of the pass it calls
`PassEdits.act` with the value there, and replaces the value by the result. This file is sent to servers, so it uses
plain classes and torch alone. Indices are on the CPU and are copied without blocking, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.precision import in_full
from odesteer_tl.portable.prompt_cache import PromptCache
from odesteer_tl.portable.sites import place_of
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import chosen_by
from odesteer_tl.portable.token_tracks import TokenTrack


class Selection:
    """The chosen tokens of one pass, on the CPU: `rows`, `columns` of the pass and `positions` in the row, all
    [chosen].

    `chosen` [batch, pos] is their bool mask. `everything`: all columns of all rows are chosen, so no index is needed.
    `track`: the token track of the pass. `lengths` [batch]: the prompt lengths. `prompt`: the number of the prompt.
    """

    def __init__(self, chosen: Tensor, track: TokenTrack, lengths: Tensor) -> None:
        self.rows, self.columns = chosen.nonzero(as_tuple=True)
        self.everything = len(self.rows) == chosen.numel()
        self.positions = track.index.flatten() if self.everything else track.index[self.rows, self.columns]
        self.track, self.lengths, self.prompt, self.shape = track, lengths, track.number, tuple(chosen.shape)
        self._index_on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def take(self, value: Tensor) -> Tensor:
        """The chosen activations [chosen, width] of a value [batch, pos, *width]."""
        flat = value.flatten(2)
        return flat.flatten(0, 1) if self.everything else flat[self.index(value.device)]

    def put(self, value: Tensor, new: Tensor) -> Tensor:
        """`value` with the chosen tokens replaced by `new` [chosen, width]; out of place, so that gradients flow."""
        new = new.to(value)
        if self.everything:
            return new.reshape(value.shape)
        return value.flatten(2).index_put(self.index(value.device), new).reshape(value.shape)

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns on a device; they are copied once."""
        if device not in self._index_on:
            self._index_on[device] = self.rows.to(device, non_blocking=True), self.columns.to(device, non_blocking=True)
        return self._index_on[device]

    def rows_on(self, device: torch.device) -> Tensor:
        """The rows on a device. If all tokens are chosen they are made there, without a copy."""
        if not self.everything:
            return self.index(device)[0]
        return torch.arange(self.shape[0], device=device).repeat_interleave(self.shape[1])


def selected(rule: Any, track: TokenTrack, lengths: Tensor, beams: int = 1) -> Selection:
    """The tokens that a rule (see `positions.Positions`) chooses in the pass of `track`, whose prompts have `lengths`
    [batch] tokens. A rule that is a mask has one row, or one row per prompt; a prompt has `beams` batch rows."""
    return Selection(chosen_by(rule, track.index, lengths, beams) & track.real, track, lengths)


class Tally:
    """Counts distinct (row, position) pairs per layer and prompt: a token steered in ten passes counts once.

    `totals`: the count per layer, over all prompts. The given `layers` are in it from the start, with 0.
    """

    def __init__(self, layers: Iterable[int] = ()) -> None:
        self.totals = dict.fromkeys(layers, 0)
        self._now: dict[int, tuple[int, int, set[Any]]] = {}  # layer: prompt, count of earlier prompts, its pairs

    def add(self, layer: int, selection: Selection) -> None:
        """Count the tokens of one pass."""
        if layer not in self._now or self._now[layer][0] != selection.prompt:
            self._now[layer] = selection.prompt, self.totals.get(layer, 0), set()
        _, earlier, pairs = self._now[layer]
        tokens = selection.track.offset + selection.columns if selection.track.tree else selection.positions
        pairs.update(zip(selection.rows.tolist(), tokens.tolist(), strict=True))
        self.totals[layer] = earlier + len(pairs)


class OwnedEdit:
    """An edit, the number of its method (`owner`), and how many rows its T has a value for (None: one T for all)."""

    def __init__(self, edit: Edit, owner: int, rows: int | None) -> None:
        self.edit, self.owner, self.rows = edit, owner, rows


def owned_edits(owner: int, method: Any, strength: Strength, layer: int | None) -> list[OwnedEdit]:
    """The edits of the method with the number `owner`. Raises ValueError as `Method.edits` does."""
    edits = method.edits(T=strength.T, relative_T=strength.relative_T, layer=layer)
    return [OwnedEdit(edit, owner, strength.rows) for edit in edits]


def by_place(edits: list[OwnedEdit]) -> dict[tuple[int, int], list[tuple[int, bool, bool]]]:
    """For each place (see `sites.place_of`), in the order of a pass: (number of the edit, whether it reads there,
    whether it writes there) for the edits at that place, in their order."""
    places: dict[tuple[int, int], list[tuple[int, bool, bool]]] = {}
    for number, owned in enumerate(edits):
        read, write = place_of(owned.edit.read), place_of(owned.edit.write)
        for place in {read, write}:
            places.setdefault(place, []).append((number, read == place, write == place))
    return dict(sorted(places.items()))


class PassEdits:
    """The edits of one forward pass. Edits at the same place act in the order of the list.

    `prompt_caches`: by number, for the edits with `of_query`. `tally` counts the steered tokens; `counts` is False for
    a pass that was counted before. A prompt has `beams` batch rows, which share its T. `done`: the numbers of the edits
    that have written. `record` is called for each edit with its number, the selection, and the value at its site before
    and after it, also where no token was chosen.
    """

    def __init__(
        self,
        edits: list[OwnedEdit],
        selection: Selection,
        prompt_caches: dict[int, PromptCache],
        tally: Tally,
        beams: int = 1,
        counts: bool = True,
        record: Callable[[int, Selection, Tensor, Tensor], None] | None = None,
    ) -> None:
        self.edits, self.selection, self.prompt_caches, self.tally = edits, selection, prompt_caches, tally
        self.beams, self.counts, self.record = beams, counts, record
        self.done: set[int] = set()
        self._read: dict[int, Tensor] = {}
        self._states: dict[int, State] = {}

    def act(self, edits_here: list[tuple[int, bool, bool]], value: Tensor) -> Tensor | None:
        """The new value [batch, pos, *width] at a place, or None if it is unchanged; `edits_here` is the entry of
        `by_place` for it. Raises ValueError for a T with another number of rows, and as the edits do."""
        chosen, new = len(self.selection.rows) > 0, None
        with in_full(value.device):
            for number, reads, writes in edits_here:
                if reads and (chosen or number in self.prompt_caches):
                    self._read[number] = self._taken(number, value)
                if writes:
                    before = value
                    if chosen:
                        value = new = self._written(number, value)
                    if self.record is not None:
                        self.record(number, self.selection, before, value)
        return new

    def _taken(self, number: int, value: Tensor) -> Tensor:
        if number not in self.prompt_caches:
            return self.selection.take(value)
        selection, of_query = self.selection, self.edits[number].edit.of_query
        return self.prompt_caches[number].of(
            selection.track, selection.track.ends(selection.lengths), value.flatten(2), of_query, selection.rows
        )

    def _written(self, number: int, value: Tensor) -> Tensor:
        edit, state = self.edits[number].edit, self._state(number, value.device)
        read = self._read.pop(number).to(value.device)
        value = self.selection.put(value, edit.apply(read, self.selection.take(value), state))
        if self.counts:
            self.tally.add(edit.write.layer, self.selection)
        self.done.add(number)
        return value

    def _state(self, number: int, device: torch.device) -> State:
        """The state of the edit's method. It computes the rows of the tokens only on demand: one T for all needs
        none."""
        owner, rows = self.edits[number].owner, self.edits[number].rows
        batch = self.selection.shape[0]
        if owner not in self._states:
            if rows is not None and rows * self.beams != batch:
                raise ValueError(
                    f"T holds {rows} values, the model sees {batch} rows: T needs one value per row, or give one "
                    "number."
                )
            rows_per_value = 1 if rows is None else self.beams
            self._states[owner] = State(lambda: self.selection.rows_on(device) // rows_per_value)
        return self._states[owner]
