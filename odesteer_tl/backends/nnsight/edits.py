"""Edits that stay on an nnsight model while a block lasts.

They are in the model's own list of edits, so that a trace inside the block reads steered values, as a TransformerLens
cache does. An edit made by nnsight is a traced block in a greenlet. If a run ends before its layer, or after fewer
steps than it waits for, the greenlet is left hanging, with a warning or an error. A `StandingEdit` is a plain function
behind nnsight's interface: it waits for nothing, and costs one call per visit. If nnsight does not call it (the model
is called as a plain module, or a trace starts at a copy that was edited before), a torch hook does the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nnsight.intervention.interleaver import Event, Mediator, Pending

from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.forward_passes import watching
from odesteer_tl.backends.model_info import load_weights
from odesteer_tl.backends.owners import owned
from odesteer_tl.backends.torch_hooks import edit_hook, replacing
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.nnsight.blocks import blocks_of
from odesteer_tl.portable.nnsight.sites import projection_of


class StandingEdit(Mediator):
    """At every visit of `location`, replace the value by `apply(value)`, over the whole batch.

    It follows nnsight's protocol of mediators: `pending` names the next visit, and nnsight calls `handle` at it.
    """

    worker: Any
    interleaver: Any

    def __init__(self, location: str, apply: Callable[[Any], Any]) -> None:
        super().__init__(None, {}, {})
        self.location, self.apply, self.over = location, apply, False

    @property
    def alive(self) -> bool:
        """Always False: it has no worker to stop when a run ends."""
        return False

    def start(self, interleaver: Any = None) -> None:
        """A run begins: wait for the first visit."""
        self.interleaver, self.worker = interleaver, self
        self.counts_at_start = {self.location: interleaver.counts.get(self.location, 0)}
        self.pending = None if self.over else Pending(Event.VALUE, self.location, 0)

    def handle(self, provider: str, value: Any) -> Any:
        """Edit the value of this visit, and wait for the next one."""
        self.pending = Pending(Event.VALUE, self.location, self.occurrence(self.location) + 1)
        return self.apply(value)

    @property
    def served(self) -> bool:
        """Whether nnsight calls this edit in the current run."""
        run = self.interleaver
        return run is not None and run.interleaving and any(other is self for other in run.mediators)

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandingEdit":
        """A copy of the model is another model, so the copied edit does nothing."""
        copy = StandingEdit(self.location, self.apply)
        copy.over = True
        return copy

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(
            "ot.steering steers only what runs on this machine; a remote trace inside its block would not be steered. "
            "Call ot.intervene(model, method, T=...) inside the trace, or ot.generate(..., remote=True)."
        )


@contextmanager
def edited(model: Any, runner: EditRunner, blocks: Any = None) -> Iterator[Report]:
    """The runner's edits are on the model inside the block, and are removed after it.

    At one layer the order is: edits made before, these, edits made inside the block, operations of a trace.
    """
    load_weights(model)  # loading replaces the modules that are hooked below
    report = Report(runner.tokens_steered)
    block_list = blocks_of(model, blocks)
    standing_edits: list[StandingEdit] = []

    def removed() -> bool:
        return any(all(other is not edit for other in model._edits) for edit in standing_edits)

    def remove() -> None:
        report.hooks_removed |= removed()
        for edit in standing_edits:
            edit.over = True  # a copy of the model made inside the block still has it
        model._edits = [other for other in model._edits if all(other is not edit for edit in standing_edits)]

    runner.removed = removed
    with ExitStack() as stack:
        owner = stack.enter_context(owned(model, blocks))
        stack.enter_context(watching(model, runner, owner, blocks))
        for site in runner.sites:
            module = projection_of(block_list[site.layer]) if site.name == "z" else block_list[site.layer]
            side = "output" if site.name == "resid_post" else "input"
            standing_edits.append(StandingEdit(f"{module.path}.{side}", replacing(runner.hook(site), side)))
            stack.callback(edit_hook(module._module, side, _elsewhere(standing_edits[-1], model)))
        stack.callback(remove)
        model._edits = [*model._edits, *standing_edits]
        yield report
        owner.wait()


def _elsewhere(edit: StandingEdit, model: Any) -> Callable[[Any], Any]:
    """The torch hook that applies `edit` in the calls in which nnsight does not."""

    def apply(value: Any) -> Any:
        still_attached = any(other is edit for other in model._edits)  # False after the user's clear_edits()
        return edit.apply(value) if not edit.over and still_attached and not edit.served else None

    return apply
