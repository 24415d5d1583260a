"""Torch hooks that come off a module whatever happened meanwhile.

A handle of torch's finds its hook through weak references. Where a generator that holds a steering block is collected
with a reference cycle, those are cleared before the block ends, and `handle.remove()` does nothing. These references
are strong.
"""

from collections.abc import Callable
from typing import Any

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
