"""Wraps the forward of a module, so that code runs before and after every call, however the call ends.

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
"""around(forward, args, kwargs): calls forward(*args, **kwargs) and returns its result."""


@contextmanager
def around_forward(module: Any, around: Around) -> Iterator[None]:
    """Inside the block, calls of the module's forward go through `around`. The last of several is the outermost."""
    wrapped = module.__dict__.get("forward")
    if not isinstance(wrapped, _WrappedForward):
        wrapped = module.__dict__["forward"] = _WrappedForward(module)
    wrapped.around = (*wrapped.around, around)
    try:
        yield
    finally:
        wrapped.around = tuple(other for other in wrapped.around if other is not around)
        if (
            not wrapped.around and module.__dict__.get("forward") is wrapped
        ):  # else somebody has wrapped it, and calls it on
            if wrapped.own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = wrapped.own


class _WrappedForward:
    """The forward of a module, called through all of `around`. `own`: the forward that was set on the module itself, as
    offloading and nnsight do; None if the class defines it."""

    def __init__(self, module: Any) -> None:
        functools.update_wrapper(self, type(module).forward)
        self.__signature__ = inspect.signature(module.forward)
        self.own, self.around, self._module = module.__dict__.get("forward"), (), ref(module)
        self.around: tuple[Around, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self._module()
        forward = MethodType(type(module).forward, module) if self.own is None else self.own
        for around in self.around:
            forward = functools.partial(_call_around, around, forward)
        return forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is another model, so its forward is not wrapped."""
        module: Any = copy.deepcopy(self._module(), memo)
        return MethodType(type(module).forward, module) if self.own is None else copy.deepcopy(self.own, memo)


def _call_around(around: Around, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(forward, args, kwargs)
