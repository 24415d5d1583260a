"""Edits while a model runs under hooks: which pass a value belongs to; `apply_edits` does the rest."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from odesteer_tl.interventions.positions import Tracker
from odesteer_tl.portable.apply_edits import OwnedEdit, PassEdits, Selection, Tally, by_place
from odesteer_tl.portable.sites import Site, place_of
from odesteer_tl.portable.token_tracking import Pass, PromptCache, TokenTrack

SiteValue = Float[Tensor, "batch pos *site"]


@dataclass(eq=False)
class _Run:
    """A forward pass under way, what the edits do in it, and the thread that runs it."""

    now: Pass
    edits: PassEdits
    thread: int = field(default_factory=get_ident)


class EditRunner:
    """The edits of a steering block, and what they did so far: told of each pass, and given each value at a site."""

    def __init__(self, edits: list[OwnedEdit], tracker: Tracker) -> None:
        self.edits, self._places = edits, by_place(edits)
        self.sites = list(dict.fromkeys(site for each in edits for site in (each.edit.read, each.edit.write)))
        self._tally = Tally(each.edit.write.layer for each in edits)
        self.tokens_steered = self._tally.totals
        self._answers = {n: PromptCache() for n, each in enumerate(edits) if each.edit.of_query is not None}
        self._tracker = tracker
        self._run: _Run | None = None
        self._again: _Run | None = None
        self._entered: dict[tuple[int, int], tuple[ref[Tensor], _Run]] = {}
        self._at_limit: dict[Site, Tensor] = {}
        self.removed: Callable[[], bool] = lambda: False
        """Whether the user has taken the edits off the model: then that they do not run is no mistake."""

    def begin(self, now: Pass) -> None:
        """A forward pass begins. Raises as `Tracker.select` does, and then leaves nothing to steer by."""
        self._run = None
        if not isinstance(now.tokens, FakeTensor):
            self._run = self._begun(now, self._tracker.select(now))

    @property
    def under_way(self) -> tuple[_Run | None, TokenTrack | None]:
        """The pass that is under way, and where it stands: what `end` of a pass inside it is given."""
        return self._run, self._tracker.last

    def end(self, outer: tuple[_Run | None, TokenTrack | None]) -> None:
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
            self._again = self._begun(run.now, run.edits.selection, counts=False)

    def check_complete(self, layer: int | None = None, made: str = "the model") -> None:
        """A pass, or a block of it, has ended without an error. Raises ValueError where tokens of it were chosen, and
        an edit that was to be carried out there was not."""
        run = self._run
        if run is None or len(run.edits.selection.rows) == 0:
            return
        sites = [each.edit.write for n, each in enumerate(self.edits) if n not in run.edits.done]
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
        here = self._places[place_of(site)]

        def carry_out(value: SiteValue, hook: Any = None) -> SiteValue | None:
            if isinstance(value, FakeTensor):  # nnsight's scan: shapes without numbers
                return None
            run = self._again if _in_backward() else self._run
            if run is not None and run.thread != get_ident() and not _in_backward():
                run = None  # a part that another thread calls by itself
            if run is None or value.shape[:2] != (run.now.batch, run.now.width):
                raise _stray(site, value, run)
            new = run.edits.act(here, value)
            if new is not None and new.dtype == torch.float16:  # seen at the end, so that nothing waits for the device
                reached = (new.detach().abs() >= 65504).any()
                self._at_limit[site] = reached | self._at_limit.get(site, reached)
            return new

        return carry_out

    @property
    def at_limit(self) -> list[str]:
        """The sites whose values came to float16's largest number, 65504, where steering ends."""
        return [site.hook_name for site, reached in self._at_limit.items() if bool(reached)]

    def _begun(self, now: Pass, selection: Selection, counts: bool = True) -> _Run:
        """A pass whose tokens are new, or (not `counts`) one that is computed twice."""
        beams = self._tracker.beams
        return _Run(now, PassEdits(self.edits, selection, self._answers, self._tally, beams, counts))


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
