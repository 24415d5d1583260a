"""Calls of a module's forward, seen from their beginning to their end, whichever way they end.

Torch's hooks are not enough: after a KeyboardInterrupt in a forward, torch calls none of them, not even those that are
registered with always_call.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from weakref import ref

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Is given a forward with its arguments, calls it, and returns what it returned."""


@contextmanager
def around_forward(module: Any, around: Around) -> Iterator[None]:
    """Inside the block `around` stands for the module's forward. The last of several is the outermost."""
    seen = module.__dict__.get("forward")
    if not isinstance(seen, _Seen):
        seen = module.__dict__["forward"] = _Seen(module)
    seen.around = (*seen.around, around)
    try:
        yield
    finally:
        seen.around = tuple(other for other in seen.around if other is not around)
        if not seen.around and module.__dict__.get("forward") is seen:  # else somebody has wrapped it, and calls it on
            if seen.own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = seen.own


class _Seen:
    """The forward of a module in whose calls others have a part. `own`: the forward that was set on the module itself,
    as offloading and nnsight do; None where its class has it."""

    def __init__(self, module: Any) -> None:
        functools.update_wrapper(self, type(module).forward)
        self.__signature__ = inspect.signature(module.forward)
        self.own, self.around, self._module = module.__dict__.get("forward"), (), ref(module)
        self.around: tuple[Around, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self._module()
        forward = MethodType(type(module).forward, module) if self.own is None else self.own
        for each in self.around:
            forward = functools.partial(_called, each, forward)
        return forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is another model, in whose calls nobody has a part."""
        twin: Any = copy.deepcopy(self._module(), memo)
        return MethodType(type(twin).forward, twin) if self.own is None else copy.deepcopy(self.own, memo)


def _called(around: Around, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(forward, args, kwargs)
