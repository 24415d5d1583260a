"""Edits that stand on an nnsight model for as long as a block lasts.

They are among the model's own edits, so that a trace inside the block reads steered values, as a TransformerLens cache
does. An nnsight edit is a traced block in a greenlet, which is left hanging, with a warning or an error, where a run
ends before its layer or after fewer steps than it waits for. A `Standing` edit is a function that nnsight serves in the
same way; it waits for nothing, and costs one call per visit. Where nnsight does not serve it (the model is called as a
plain module, or a trace starts at a copy that was edited before) a torch hook does the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nnsight.intervention.interleaver import Event, Mediator, Pending

from odesteer_tl.backends.carrying import Carrier
from odesteer_tl.backends.models import load_weights
from odesteer_tl.backends.nnsight.blocks import blocks_of, output_with, value_in
from odesteer_tl.backends.nnsight.sites import entering, inputs_with, projection_of
from odesteer_tl.backends.owners import owned
from odesteer_tl.backends.passes import watching
from odesteer_tl.backends.report import Report
from odesteer_tl.backends.torch_hooks import removal
from odesteer_tl.edits import Site


class Standing(Mediator):
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

    def __deepcopy__(self, memo: dict[int, Any]) -> "Standing":
        """A copy of the model is another model, which is not steered."""
        twin = Standing(self.location, self.apply)
        twin.over = True
        return twin

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(
            "ot.steering steers what runs on this machine; a remote trace inside its block would not be steered. Call "
            "ot.intervene(model, method, T=...) inside the trace, or ot.generate(..., remote=True)."
        )


@contextmanager
def edited(model: Any, carrier: Carrier, blocks: Any = None) -> Iterator[Report]:
    """The carrier's edits stand on the model inside the block, and nothing of them is left after it.

    At one layer the edits that were there before act first, then these, then those that are made inside the block, and
    last what a trace does.
    """
    load_weights(model)  # the modules that are hooked below are replaced when they come
    report = Report(carrier.tokens_steered)
    found = blocks_of(model, blocks)
    ours: list[Standing] = []

    def removed() -> bool:
        return any(all(other is not edit for other in model._edits) for edit in ours)

    def remove() -> None:
        report.hooks_removed |= removed()
        for edit in ours:
            edit.over = True  # a copy of the model made inside the block holds it still
        model._edits = [other for other in model._edits if all(other is not edit for edit in ours)]

    carrier.removed = removed
    with ExitStack() as stack:
        owner = stack.enter_context(owned(model, blocks))
        stack.enter_context(watching(model, carrier, owner, blocks))
        for site in carrier.sites:
            module = projection_of(found[site.layer]) if site.name == "z" else found[site.layer]
            side = "output" if site.name == "resid_post" else "input"
            ours.append(Standing(f"{module.path}.{side}", _replacing(carrier, site)))
            stack.callback(_hooked(module._module, ours[-1], side, model))
        stack.callback(remove)
        model._edits = [*model._edits, *ours]
        yield report
        owner.wait()


def _hooked(hooked: Any, edit: Standing, side: str, model: Any) -> Callable[[], None]:
    """A torch hook that does what `edit` does in the runs that nnsight does not serve, before the user's own hooks, as
    nnsight would, and after those of steering blocks around this one. Returns what takes it off."""

    def acts(module: Any) -> bool:
        there = any(other is edit for other in model._edits)  # unless clear_edits has taken it away
        return module is hooked and not edit.over and there and not edit.served

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        return edit.apply((args, kwargs)) if acts(module) else None

    def after(module: Any, args: Any, output: Any) -> Any:
        return edit.apply(output) if acts(module) else None

    if side == "input":
        hooks, own = hooked._forward_pre_hooks, before
        handle = hooked.register_forward_pre_hook(own, with_kwargs=True, prepend=True)
    else:
        hooks, own = hooked._forward_hooks, after
        handle = hooked.register_forward_hook(own, prepend=True)
    own.__dict__["steers"] = True
    for number in reversed([n for n, other in hooks.items() if other is not own and hasattr(other, "steers")]):
        hooks.move_to_end(number, last=False)
    return removal(hooked, handle)


def _replacing(carrier: Carrier, site: Site) -> Callable[[Any], Any]:
    """The carrier's hook for what nnsight hands over: (args, kwargs) of a block or projection, or a block's output."""
    carry_out = carrier.hook(site)

    def at_input(value: Any) -> Any:
        new = carry_out(entering(value))
        return value if new is None else inputs_with(value, new)

    def at_output(value: Any) -> Any:
        new = carry_out(value_in(value))
        return value if new is None else output_with(value, new)

    return at_output if site.name == "resid_post" else at_input
