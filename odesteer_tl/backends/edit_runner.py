"""Runs edits in hooks: finds the forward pass that a value belongs to, and calls `apply_edits` with it."""

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
from odesteer_tl.interventions.records import Recording
from odesteer_tl.portable.apply_edits import OwnedEdit, PassEdits, Selection, Tally, by_place
from odesteer_tl.portable.prompt_cache import PromptCache
from odesteer_tl.portable.sites import Site, place_of
from odesteer_tl.portable.token_tracks import Pass, TokenTrack

SiteValue = Float[Tensor, "batch pos *site"]


@dataclass(eq=False)
class _Run:
    """A running forward pass, its edits, and the thread that runs it."""

    now: Pass
    edits: PassEdits
    thread: int = field(default_factory=get_ident)


class EditRunner:
    """The edits of a steering block and their counts. A backend calls `begin` and `end` for each forward pass, and the
    function that `hook` returns for each value at a site."""

    def __init__(self, edits: list[OwnedEdit], tracker: Tracker, recording: Recording | None = None) -> None:
        self.edits, self._places, self.recording = edits, by_place(edits), recording
        self.sites = list(dict.fromkeys(site for owned in edits for site in (owned.edit.read, owned.edit.write)))
        self._tally = Tally(owned.edit.write.layer for owned in edits)
        self.tokens_steered = self._tally.totals
        self._prompt_caches = {n: PromptCache() for n, owned in enumerate(edits) if owned.edit.of_query is not None}
        self._tracker = tracker
        self._run: _Run | None = None
        self._recomputed: _Run | None = None
        self._entered: dict[tuple[int, int], tuple[ref[Tensor], _Run]] = {}
        self._at_limit: dict[Site, Tensor] = {}
        self.removed: Callable[[], bool] = lambda: False
        """Whether the user has removed the edits from the model; then it is no error that they do not run."""

    def begin(self, now: Pass) -> None:
        """Start a forward pass. Raises as `Tracker.select` does; after an error nothing is steered."""
        self._run = None
        if not isinstance(now.tokens, FakeTensor):
            self._run = self._new_run(now, self._tracker.select(now))

    @property
    def under_way(self) -> tuple[_Run | None, TokenTrack | None]:
        """The running pass and its token track. The `end` of a pass inside this one takes them."""
        return self._run, self._tracker.last

    def end(self, outer: tuple[_Run | None, TokenTrack | None]) -> None:
        """End a pass, with or without an error. `outer` is `under_way` from before its `begin`: a model may be called
        again in the middle of a pass. If no pass was running, a value that comes before the next `begin` is from a part
        of the model that was called by itself."""
        self._run, last = outer
        if self._run is not None:
            self._tracker.last = last

    def forget(self) -> None:
        """The running pass was interrupted, for example by Ctrl-C: no later pass continues it."""
        self._tracker.break_off()

    def entered(self, layer: int, value: Any) -> None:
        """Remember the input of a block in the running pass."""
        if self._run is not None and isinstance(value, Tensor):
            self._entered = {key: entry for key, entry in self._entered.items() if entry[0]() is not None}
            self._entered[layer, value.data_ptr()] = ref(value), self._run

    def entered_again(self, layer: int, value: Any) -> None:
        """In a backward pass that recomputes a block, find the forward pass by the input of the block's first part."""
        if _in_backward() and isinstance(value, Tensor) and (layer, value.data_ptr()) in self._entered:
            run = self._entered[layer, value.data_ptr()][1]
            self._recomputed = self._new_run(run.now, run.edits.selection, counts=False)

    def check_complete(self, layer: int | None = None, library: str = "the model") -> None:
        """Check a pass, or one block of it, that ended without an error. Raises ValueError if tokens of it were chosen
        and an edit was not carried out."""
        run = self._run
        if run is None or len(run.edits.selection.rows) == 0:
            return
        sites = [owned.edit.write for n, owned in enumerate(self.edits) if n not in run.edits.done]
        missed = [site.hook_name for site in sites if layer in (None, site.layer)]
        if missed and not self.removed():
            raise ValueError(
                f"A pass of {tuple(run.now.tokens.shape[:2]) if run.now.tokens is not None else run.now.width} tokens "
                f"ended, and the steering at {', '.join(missed)} did not run in it ({library}): that part of the model "
                "was skipped (as below start_at_layer), replaced, or compiled before the block began. Steer a layer "
                "that runs, or do not compile the model."
            )

    def hook(self, site: Site) -> Callable[..., SiteValue | None]:
        """The function that a backend calls with the value at `site`. It returns the new value, or None if
        unchanged."""
        edits_here = self._places[place_of(site)]

        def carry_out(value: SiteValue, hook: Any = None) -> SiteValue | None:
            if isinstance(value, FakeTensor):  # nnsight's scan: shapes without numbers
                return None
            run = self._recomputed if _in_backward() else self._run
            if run is not None and run.thread != get_ident() and not _in_backward():
                run = None  # another thread called a part of the model by itself
            if run is None or value.shape[:2] != (run.now.batch, run.now.width):
                raise _stray_value(site, value, run)
            new = run.edits.act(edits_here, value)
            if new is not None and new.dtype == torch.float16:  # read at the end, so that nothing waits for the device
                reached = (new.detach().abs() >= 65504).any()
                self._at_limit[site] = reached | self._at_limit.get(site, reached)
            return new

        return carry_out

    @property
    def at_limit(self) -> list[str]:
        """The sites with values at the largest float16, 65504, to which steering clamps."""
        return [site.hook_name for site, reached in self._at_limit.items() if bool(reached)]

    def _new_run(self, now: Pass, selection: Selection, counts: bool = True) -> _Run:
        """The run of a pass. `counts` is False for a pass that is computed again, whose tokens were counted before."""
        record = self.recording.add if counts and self.recording is not None else None
        caches, beams = self._prompt_caches, self._tracker.beams
        return _Run(now, PassEdits(self.edits, selection, caches, self._tally, beams, counts, record))


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _stray_value(site: Site, value: Tensor, run: _Run | None) -> ValueError:
    """The error for a value at a site that belongs to no pass that was seen."""
    shape = tuple(value.shape[:2])
    if _in_backward():
        return ValueError(
            f"{site.hook_name} is computed once more during a backward pass, and its forward pass is not known: switch "
            "gradient checkpointing on before the steering block begins and run forward and backward inside it, or "
            "switch it off."
        )
    if run is None:
        return ValueError(
            f"{site.hook_name} ran outside a forward pass: inside a steering block call the model or its methods, not "
            "its parts."
        )
    return ValueError(
        f"{site.hook_name} holds {shape} [batch, pos] where the pass has {(run.now.batch, run.now.width)}: this layer "
        "does not see the same rows and columns as the model (some layers compute only the last tokens). Steer an "
        "earlier layer."
    )
