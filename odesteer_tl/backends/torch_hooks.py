"""Torch hooks that come off a module whatever happened meanwhile.

A handle of torch's finds its hook through weak references. Where a generator that holds a steering block is collected
with a reference cycle, those are cleared before the block ends, and `handle.remove()` does nothing. These references
are strong.
"""

from collections.abc import Callable
from typing import Any, Literal

from odesteer_tl.portable.decoder_blocks import entering, inputs_with, output_with, value_in

_HELD = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def removal(module: Any, handle: Any) -> Callable[[], None]:
    """What takes the forward hook or pre-hook of `handle` off the module, once or several times."""
    number, held = handle.id, [getattr(module, name) for name in _HELD]

    def remove() -> None:
        for hooks in held:
            hooks.pop(number, None)

    return remove


def edit_hook(module: Any, side: Literal["input", "output"], edit: Callable[[Any], Any]) -> Callable[[], None]:
    """`edit` is called with what enters a module, (args, kwargs), or with what leaves it, and returns what takes its
    place (None: nothing does): before the user's own hooks, and after those of steering blocks around this one. A copy
    of the module, which takes the hook along, is not edited. Returns what takes the hook off."""

    def before(called: Any, args: Any, kwargs: Any) -> Any:
        return edit((args, kwargs)) if called is module else None

    def after(called: Any, args: Any, output: Any) -> Any:
        return edit(output) if called is module else None

    if side == "input":
        hooks, own = module._forward_pre_hooks, before
        handle = module.register_forward_pre_hook(own, with_kwargs=True, prepend=True)
    else:
        hooks, own = module._forward_hooks, after
        handle = module.register_forward_hook(own, prepend=True)
    own.__dict__["steers"] = True
    for number in reversed([n for n, other in hooks.items() if other is not own and hasattr(other, "steers")]):
        hooks.move_to_end(number, last=False)
    return removal(module, handle)


def replacing(carry_out: Callable[[Any], Any], side: Literal["input", "output"]) -> Callable[[Any], Any]:
    """What `edit_hook` needs for a function of the activations alone, which returns None to leave them as they are."""

    def at_input(value: Any) -> Any:
        new = carry_out(entering(value))
        return value if new is None else inputs_with(value, new)

    def at_output(value: Any) -> Any:
        new = carry_out(value_in(value))
        return value if new is None else output_with(value, new)

    return at_output if side == "output" else at_input
