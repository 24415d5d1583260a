"""Edits as hooks of a TransformerLens model, for as long as a block lasts."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.forward_passes import watching
from odesteer_tl.backends.owners import owned
from odesteer_tl.backends.torch_hooks import removal
from odesteer_tl.backends.transformer_lens.cache_names import renamed
from odesteer_tl.interventions.report import Report


@contextmanager
def hooked(model: Any, runner: EditRunner) -> Iterator[Report]:
    """The carrier's hooks are on the model inside the block, and nothing of them is left after it."""
    report = Report(runner.tokens_steered)
    points: list[tuple[Any, Any]] = []
    over = False

    def removed() -> bool:
        return any(all(other is not handle for other in point.fwd_hooks) for point, handle in points)

    def detach() -> None:
        nonlocal over
        over = True
        report.hooks_removed |= removed()
        for point, handle in points:
            removal(point, handle.hook)()
            point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]

    def until_over(carry_out: Callable[..., Any]) -> Callable[..., Any]:
        """A copy of the model that is made inside the block keeps the hook."""
        return lambda value, hook: None if over else carry_out(value, hook)

    runner.removed = removed
    with ExitStack() as stack:
        owner = stack.enter_context(owned(model))
        stack.enter_context(renamed(model))
        stack.enter_context(watching(model, runner, owner))
        stack.callback(detach)
        hooks = model.hook_dict  # which a bridge gathers each time it is asked
        for site in runner.sites:
            point = hooks[site.hook_name]
            point.add_hook(until_over(runner.hook(site)))
            points.append((point, point.fwd_hooks[-1]))
        yield report
        owner.wait()
