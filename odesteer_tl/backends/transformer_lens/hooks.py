"""Edits as hooks of a TransformerLens model, while a block lasts."""

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
    """The runner's hooks are on the model inside the block, and are removed after it."""
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
        """The hook, which does nothing after the block: a copy of the model made inside the block keeps it."""
        return lambda value, hook: None if over else carry_out(value, hook)

    runner.removed = removed
    with ExitStack() as stack:
        owner = stack.enter_context(owned(model))
        stack.enter_context(renamed(model))
        stack.enter_context(watching(model, runner, owner))
        stack.callback(detach)
        hooks = model.hook_dict  # read once, because a bridge collects it at every access
        for site in runner.sites:
            point = hooks[site.hook_name]
            point.add_hook(until_over(runner.hook(site)))
            points.append((point, point.fwd_hooks[-1]))
        yield report
        owner.wait()
