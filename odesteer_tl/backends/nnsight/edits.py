"""Edits that stand on an nnsight model for as long as a block lasts.

They are among the model's own edits, so that a trace inside the block reads steered values, as a TransformerLens cache
does. An nnsight edit is a traced block in a greenlet, which is left hanging, with a warning or an error, where a run
ends before its layer or after fewer steps than it waits for. A `StandingEdit` is a function that nnsight serves in the
same way; it waits for nothing, and costs one call per visit. Where nnsight does not serve it (the model is called as a
plain module, or a trace starts at a copy that was edited before) a torch hook does the same.
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

    It speaks nnsight's protocol of mediators: `pending` names the visit that it waits for, `handle` serves that.
    """

    worker: Any
    interleaver: Any

    def __init__(self, location: str, apply: Callable[[Any], Any]) -> None:
        super().__init__(None, {}, {})
        self.location, self.apply, self.over = location, apply, False

    @property
    def alive(self) -> bool:
        """Never: no worker of its own has to be unwound when a run ends."""
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
        """Whether the run under way is one of nnsight's in which this edit stands."""
        run = self.interleaver
        return run is not None and run.interleaving and any(other is self for other in run.mediators)

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandingEdit":
        """A copy of the model is another model, which is not steered."""
        twin = StandingEdit(self.location, self.apply)
        twin.over = True
        return twin

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(
            "ot.steering steers what runs on this machine; a remote trace inside its block would not be steered. Call "
            "ot.intervene(model, method, T=...) inside the trace, or ot.generate(..., remote=True)."
        )


@contextmanager
def edited(model: Any, runner: EditRunner, blocks: Any = None) -> Iterator[Report]:
    """The carrier's edits stand on the model inside the block, and nothing of them is left after it.

    At one layer the edits that were there before act first, then these, then those that are made inside the block, and
    last what a trace does.
    """
    load_weights(model)  # the modules that are hooked below are replaced when they come
    report = Report(runner.tokens_steered)
    found = blocks_of(model, blocks)
    ours: list[StandingEdit] = []

    def removed() -> bool:
        return any(all(other is not edit for other in model._edits) for edit in ours)

    def remove() -> None:
        report.hooks_removed |= removed()
        for edit in ours:
            edit.over = True  # a copy of the model made inside the block holds it still
        model._edits = [other for other in model._edits if all(other is not edit for edit in ours)]

    runner.removed = removed
    with ExitStack() as stack:
        owner = stack.enter_context(owned(model, blocks))
        stack.enter_context(watching(model, runner, owner, blocks))
        for site in runner.sites:
            module = projection_of(found[site.layer]) if site.name == "z" else found[site.layer]
            side = "output" if site.name == "resid_post" else "input"
            ours.append(StandingEdit(f"{module.path}.{side}", replacing(runner.hook(site), side)))
            stack.callback(edit_hook(module._module, side, _elsewhere(ours[-1], model)))
        stack.callback(remove)
        model._edits = [*model._edits, *ours]
        yield report
        owner.wait()


def _elsewhere(edit: StandingEdit, model: Any) -> Callable[[Any], Any]:
    """What `edit` does in the runs that nnsight does not serve."""

    def apply(value: Any) -> Any:
        there = any(other is edit for other in model._edits)  # unless clear_edits has taken it away
        return edit.apply(value) if not edit.over and there and not edit.served else None

    return apply
