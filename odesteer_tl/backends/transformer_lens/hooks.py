"""Edits as hooks of a TransformerLens model, while a block lasts."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.forward_calls import around_forward
from odesteer_tl.backends.forward_passes import watching
from odesteer_tl.backends.owners import owned
from odesteer_tl.backends.torch_hooks import removal
from odesteer_tl.backends.transformer_lens.cache_names import renamed
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.model_inputs import named
from odesteer_tl.portable.sites import Site


@contextmanager
def hooked(model: Any, runner: EditRunner) -> Iterator[Report]:
    """The runner's hooks are on the model inside the block, and are removed after it."""
    report = Report(runner.tokens_steered)
    points: list[tuple[Any, Any]] = []
    over, first = False, 0
    names = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]

    def removed() -> bool:
        return any(all(other is not handle for other in point.fwd_hooks) for point, handle in points)

    def detach() -> None:
        nonlocal over
        over = True
        report.hooks_removed |= removed()
        for point, handle in points:
            removal(point, handle.hook)()
            point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]

    def notes_first(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A bridge that is called with `start_at_layer` runs the layers below it too, and discards what they give."""
        nonlocal first
        outer, start = first, named(args, kwargs, names).get("start_at_layer") or 0
        first = start + model.cfg.n_layers if start < 0 else start
        try:
            return forward(*args, **kwargs)
        finally:
            first = outer

    def where_it_counts(site: Site) -> Callable[..., Any]:
        """The hook at a site. It does nothing below the layer that a call begins at, nor after the block: a copy of the
        model made inside the block keeps it."""
        carry_out = runner.hook(site)
        return lambda value, hook: None if over or site.layer < first else carry_out(value, hook)

    runner.removed = removed
    with ExitStack() as stack:
        owner = stack.enter_context(owned(model))
        stack.enter_context(renamed(model))
        stack.enter_context(watching(model, runner, owner))
        stack.enter_context(around_forward(model, notes_first))
        stack.callback(detach)
        hooks = model.hook_dict  # read once, because a bridge collects it at every access
        for site in runner.sites:
            point = hooks[site.hook_name]
            point.add_hook(where_it_counts(site))
            points.append((point, point.fwd_hooks[-1]))
        yield report
        owner.wait()
