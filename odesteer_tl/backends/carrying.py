"""Carrying out edits while a model runs: each value is read and written at its site, on the chosen tokens alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import get_ident
from typing import Any
from weakref import ref

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
    """A forward pass under way. `read` holds, by edit, what was read at an earlier site; `states` one per method;
    `done` the edits that were carried out. `counts`: its tokens are new, as those of a pass computed twice are not.
    `thread` runs it."""

    now: Pass
    selection: Selection
    counts: bool = True
    read: dict[int, Chosen] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    where: dict[torch.device, tuple[Indices, Indices]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    thread: int = field(default_factory=get_ident)

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
        self._again: _Run | None = None
        self._entered: dict[tuple[int, int], tuple[ref[Tensor], _Run]] = {}
        self.removed: Callable[[], bool] = lambda: False
        """Whether the user has taken the edits off the model: then that they do not run is no mistake."""

    def begin(self, now: Pass) -> None:
        """A forward pass begins. Raises as `Tracker.select` does, and then leaves nothing to steer by."""
        self._run = None
        if not isinstance(now.tokens, FakeTensor):
            self._run = _Run(now, self._tracker.select(now))

    @property
    def under_way(self) -> tuple[_Run | None, Followed | None]:
        """The pass that is under way, and where it stands: what `end` of a pass inside it is given."""
        return self._run, self._tracker.last

    def end(self, outer: tuple[_Run | None, Followed | None]) -> None:
        """A pass has ended, in whichever way; `outer` was under way when it began, as where a model is called anew in
        the middle of a pass. With none, what runs before the next one begins is a part of the model called by
        itself."""
        self._run, last = outer
        if self._run is not None:
            self._tracker.last = last

    def forget(self) -> None:
        """The pass under way was broken off, as by Ctrl-C: no later one continues it."""
        self._tracker.break_off()

    def entered(self, layer: int, value: Any) -> None:
        """This enters a block of the pass under way."""
        if self._run is not None and isinstance(value, Tensor):
            self._entered = {key: kept for key, kept in self._entered.items() if kept[0]() is not None}
            self._entered[layer, value.data_ptr()] = ref(value), self._run

    def entered_again(self, layer: int, value: Any) -> None:
        """This enters a part of a block; where a backward pass computes the block anew, it may be what entered it."""
        if _in_backward() and isinstance(value, Tensor) and (layer, value.data_ptr()) in self._entered:
            run = self._entered[layer, value.data_ptr()][1]
            self._again = _Run(run.now, run.selection, counts=False)

    def check_complete(self, layer: int | None = None, made: str = "the model") -> None:
        """A pass, or a block of it, has ended without an error. Raises ValueError where tokens of it were chosen, and
        an edit that was to be carried out there was not."""
        run = self._run
        if run is None or len(run.selection.rows) == 0:
            return
        sites = [each.edit.write for n, each in enumerate(self.edits) if n not in run.done]
        missed = [site.hook_name for site in sites if layer in (None, site.layer)]
        if missed and not self.removed():
            raise ValueError(
                f"A pass of {tuple(run.now.tokens.shape[:2]) if run.now.tokens is not None else run.now.width} tokens "
                f"ended, and the steering at {', '.join(missed)} did not run in it ({made}): that part of the model "
                "was skipped, replaced, or compiled before the block began. Steer a layer that runs, or run it "
                "uncompiled."
            )

    def hook(self, site: Site) -> Callable[..., SiteValue | None]:
        """What a backend calls with the value at `site`; None leaves the value as it is."""
        here = [(n, each.edit) for n, each in enumerate(self.edits) if site in (each.edit.read, each.edit.write)]

        def carry_out(value: SiteValue, hook: Any = None) -> SiteValue | None:
            if isinstance(value, FakeTensor):  # nnsight's scan: shapes without numbers
                return None
            run = self._again if _in_backward() else self._run
            if run is not None and run.thread != get_ident() and not _in_backward():
                run = None  # a part that another thread calls by itself
            if run is None or value.shape[:2] != (run.now.batch, run.now.width):
                raise _stray(site, value, run)
            chosen = len(run.selection.rows) > 0
            result = None
            for number, edit in here:
                if edit.read == site and (chosen or number in self._answers):
                    run.read[number] = self._read(run, number, value)
                if edit.write == site and chosen:
                    value = result = self._written(run, number, value)
                    run.done.add(number)
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
        if run.counts:
            self._tallies[layer].add(run.selection)
        self.tokens_steered[layer] = self._tallies[layer].total
        return value


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _stray(site: Site, value: Tensor, run: _Run | None) -> ValueError:
    """Why a value at a site belongs to no pass that was seen."""
    shape = tuple(value.shape[:2])
    if _in_backward():
        return ValueError(
            f"{site.hook_name} is computed once more during a backward pass, and which forward pass it belongs to is "
            "not known: switch gradient checkpointing on before the steering block begins and run forward and backward "
            "inside it, or switch it off."
        )
    if run is None:
        return ValueError(
            f"{site.hook_name} ran outside a forward pass: inside a steering block call the model or its methods, not "
            "its parts."
        )
    return ValueError(
        f"{site.hook_name} holds {shape} [batch, pos] where the pass has {(run.now.batch, run.now.width)}: this layer "
        "sees other rows or columns than the model was given, as where a layer computes the last tokens alone. Steer "
        "an earlier layer."
    )


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
