"""Wraps the forward of a module, or another method, so that code runs before and after every call, however it ends.

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
def around_forward(module: Any, around: Around, name: str = "forward") -> Iterator[None]:
    """Inside the block, calls of the module's forward, or of its method `name`, go through `around`. The last of
    several is the outermost."""
    wrapped = module.__dict__.get(name)
    if not isinstance(wrapped, _Wrapped):
        wrapped = module.__dict__[name] = _Wrapped(module, name)
    wrapped.around = (*wrapped.around, around)
    try:
        yield
    finally:
        wrapped.around = tuple(other for other in wrapped.around if other is not around)
        if not wrapped.around and module.__dict__.get(name) is wrapped:  # else somebody has wrapped it, and calls it on
            if wrapped.own is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = wrapped.own


class _Wrapped:
    """A method of a module, called through all of `around`. `own`: the one that was set on the module itself, as
    offloading and nnsight do; None if the class defines it."""

    def __init__(self, module: Any, name: str) -> None:
        functools.update_wrapper(self, getattr(type(module), name))
        self.__signature__ = inspect.signature(getattr(module, name))
        self.own, self.around, self._module, self._name = module.__dict__.get(name), (), ref(module), name
        self.around: tuple[Around, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = self._plain(self._module())
        for around in self.around:
            method = functools.partial(_call_around, around, method)
        return method(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is another model, so its methods are not wrapped."""
        module: Any = copy.deepcopy(self._module(), memo)
        return self._plain(module) if self.own is None else copy.deepcopy(self.own, memo)

    def _plain(self, module: Any) -> Callable[..., Any]:
        return MethodType(getattr(type(module), self._name), module) if self.own is None else self.own


def _call_around(around: Around, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(forward, args, kwargs)
