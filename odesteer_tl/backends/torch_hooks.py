"""Torch hooks that are always removed from their module.

A torch handle finds its hook through weak references. If a generator that holds a steering block is collected with a
reference cycle, these are cleared before the block ends, and `handle.remove()` does nothing. The references here are
strong.
"""

from collections.abc import Callable
from typing import Any, Literal

from odesteer_tl.portable.decoder_blocks import entering, inputs_with, output_with, value_in

_HELD = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def removal(module: Any, handle: Any) -> Callable[[], None]:
    """A function that removes the forward hook or pre-hook of `handle` from the module; it may be called repeatedly."""
    number, hook_dicts = handle.id, [getattr(module, name) for name in _HELD]

    def remove() -> None:
        for hooks in hook_dicts:
            hooks.pop(number, None)

    return remove


def edit_hook(module: Any, side: Literal["input", "output"], edit: Callable[[Any], Any]) -> Callable[[], None]:
    """Call `edit` with the input of a module, (args, kwargs), or with its output. Its result replaces the value, unless
    it is None. It runs before the user's own hooks, and after those of outer steering blocks. A copy of the module has
    the hook too, but is not edited. Returns a function that removes the hook."""

    def pre_hook(called: Any, args: Any, kwargs: Any) -> Any:
        return edit((args, kwargs)) if called is module else None

    def post_hook(called: Any, args: Any, output: Any) -> Any:
        return edit(output) if called is module else None

    if side == "input":
        hooks, hook = module._forward_pre_hooks, pre_hook
        handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    else:
        hooks, hook = module._forward_hooks, post_hook
        handle = module.register_forward_hook(hook, prepend=True)
    hook.__dict__["steers"] = True
    for number in reversed([n for n, other in hooks.items() if other is not hook and hasattr(other, "steers")]):
        hooks.move_to_end(number, last=False)
    return removal(module, handle)


def replacing(carry_out: Callable[[Any], Any], side: Literal["input", "output"]) -> Callable[[Any], Any]:
    """The `edit` for `edit_hook` from a function of the activations alone, which returns None to leave them
    unchanged."""

    def at_input(value: Any) -> Any:
        new = carry_out(entering(value))
        return value if new is None else inputs_with(value, new)

    def at_output(value: Any) -> Any:
        new = carry_out(value_in(value))
        return value if new is None else output_with(value, new)

    return at_output if side == "output" else at_input
