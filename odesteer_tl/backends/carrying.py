"""Carrying out edits while a model runs: each value is read and written at its site, on the chosen tokens alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from odesteer_tl.backends.report import Tally
from odesteer_tl.edits import Edit, Site, State
from odesteer_tl.following import Answers, Followed, Pass
from odesteer_tl.positions import Selection, Tracker
from odesteer_tl.shapes import Chosen, Indices

SiteValue = Float[Tensor, "batch pos *site"]


@dataclass(frozen=True, eq=False)
class OwnedEdit:
    """An edit, the number of its method, and for how many rows that method has a T (None: one T for all)."""

    edit: Edit
    owner: int
    rows: int | None


@dataclass(eq=False)
class _Run:
    """A forward pass under way. `read` holds, by edit, what was read at an earlier site; `states` one per method."""

    now: Pass
    selection: Selection
    read: dict[int, Chosen] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    where: dict[torch.device, tuple[Indices, Indices]] = field(default_factory=dict)

    def index(self, device: torch.device) -> tuple[Indices, Indices]:
        """Rows and columns of the chosen tokens, once per device; nothing here waits for the device."""
        if device not in self.where:
            rows, columns = self.selection.rows, self.selection.columns
            self.where[device] = rows.to(device, non_blocking=True), columns.to(device, non_blocking=True)
        return self.where[device]

    def take(self, value: SiteValue) -> Chosen:
        flat = value.flatten(2)
        return flat.flatten(0, 1) if self.selection.everything else flat[self.index(value.device)]

    def put(self, value: SiteValue, new: Chosen) -> SiteValue:
        """`value` with the chosen tokens replaced, out of place, so that derivatives pass through."""
        new = new.to(value)
        if self.selection.everything:
            return new.reshape(value.shape)
        return value.flatten(2).index_put(self.index(value.device), new).reshape(value.shape)


class _State(State):
    """One that finds whose each token is where an edit asks for it: with one T for all, none does."""

    def __init__(self, find: Callable[[], Indices]) -> None:
        self.memory, self._find = {}, find

    @cached_property
    def rows(self) -> Indices:
        return self._find()


class Carrier:
    """The edits of a steering block, and what they did so far. At one hook they act in the order of the list."""

    def __init__(self, edits: list[OwnedEdit], tracker: Tracker) -> None:
        self.edits = edits
        self.sites = list(dict.fromkeys(site for each in edits for site in (each.edit.read, each.edit.write)))
        self.tokens_steered = dict.fromkeys((each.edit.write.layer for each in edits), 0)
        self._tallies = {layer: Tally() for layer in self.tokens_steered}
        self._answers = {n: Answers() for n, each in enumerate(edits) if each.edit.of_query is not None}
        self._tracker = tracker
        self._run: _Run | None = None
        self._outer: list[tuple[_Run | None, Followed | None]] = []

    def begin(self, now: Pass) -> None:
        """A forward pass begins. Raises as `Tracker.select` does, and then leaves nothing to steer by."""
        self._run = None
        if not isinstance(now.tokens, FakeTensor):
            self._run = _Run(now, self._tracker.select(now))

    def within(self, now: Pass) -> None:
        """As `begin`, where `end` will follow: the model may be called anew in the middle of a pass."""
        outer = (self._run, self._tracker.last)
        self.begin(now)
        self._outer.append(outer)

    def end(self) -> None:
        """A forward pass has ended: what runs before the next one begins is a part of the model called by itself."""
        if self._outer:
            self._run, last = self._outer.pop()
            if self._run is not None:
                self._tracker.last = last

    def hook(self, site: Site) -> Callable[..., SiteValue | None]:
        """What a backend calls with the value at `site`; None leaves the value as it is."""
        here = [(n, each.edit) for n, each in enumerate(self.edits) if site in (each.edit.read, each.edit.write)]

        def carry_out(value: SiteValue, hook: Any = None) -> SiteValue | None:
            run = self._run
            if isinstance(value, FakeTensor):  # nnsight's scan: shapes without numbers
                return None
            if run is None or value.shape[:2] != (run.now.batch, run.now.width):
                raise ValueError(
                    f"{site.hook_name} ran outside a forward pass: inside a steering block call the model or its "
                    "methods, not its parts."
                )
            chosen = len(run.selection.rows) > 0
            result = None
            for number, edit in here:
                if edit.read == site and (chosen or number in self._answers):
                    run.read[number] = self._read(run, number, value)
                if edit.write == site and chosen:
                    value = result = self._written(run, number, value)
            return result

        return carry_out

    def _read(self, run: _Run, number: int, value: SiteValue) -> Chosen:
        if number not in self._answers:
            return run.take(value)
        now, of_query = run.selection, self.edits[number].edit.of_query
        return self._answers[number].of(now.found, now.found.ends(now.lengths), value.flatten(2), of_query, now.rows)

    def _written(self, run: _Run, number: int, value: SiteValue) -> SiteValue:
        each = self.edits[number]
        if each.owner not in run.states:
            run.states[each.owner] = _State(_rows(run, value.device, each.rows, self._tracker.beams))
        read = run.read.pop(number).to(value.device)
        value = run.put(value, each.edit.apply(read, run.take(value), run.states[each.owner]))
        layer = each.edit.write.layer
        self._tallies[layer].add(run.selection)
        self.tokens_steered[layer] = self._tallies[layer].total
        return value


def _rows(run: _Run, device: torch.device, rows: int | None, beams: int) -> Callable[[], Indices]:
    """Finds the batch row of each chosen token; where T holds a value per prompt, beams count as their prompt's row."""
    batch, width = run.now.batch, run.now.width
    if rows is not None and rows * beams != batch:
        raise ValueError(f"T holds {rows} values, the model sees {batch} rows: T needs one value per row.")

    def find() -> Indices:
        everything = run.selection.everything
        chosen = torch.arange(batch, device=device).repeat_interleave(width) if everything else run.index(device)[0]
        return chosen if rows is None else chosen // beams

    return find
