"""Shapes are checked in the first calls of each function in each test: every later one would take its time again.

pytest's `--jaxtyping-packages` decorates all functions of the package with `jaxtyping.jaxtyped`. `install` puts one in
its place that stops after CALLS calls of the same function, until `begin_test`: the steps of a flow and the epochs of a
network call the same functions with the same shapes over and over. What beartype makes for a signature is made once,
also where a function within a function is made anew.
"""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any

import jaxtyping

CALLS = 3
_calls: Counter = Counter()
_checks: dict[tuple, Callable] = {}
_every_call = jaxtyping.jaxtyped


def install() -> None:
    jaxtyping.jaxtyped = _in_first_calls


def begin_test() -> None:
    _calls.clear()


def _in_first_calls(fn: Any = None, *, typechecker: Callable) -> Any:
    def checked_once_made(stub: Any) -> Any:
        """The checks of a function without a body, which jaxtyping makes of a signature."""
        hints = stub.__annotations__.items()
        key = stub.__module__, stub.__qualname__, stub.__code__.co_code, *((name, id(hint)) for name, hint in hints)
        if key not in _checks:
            _checks[key] = typechecker(stub)  # which keeps the hints, so that no other one has their id
        return _checks[key]

    if fn is None:
        return lambda fn: _in_first_calls(fn, typechecker=typechecker)
    if not isinstance(fn, FunctionType):
        return _every_call(fn, typechecker=typechecker)
    checked = None

    @wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if _calls[fn.__code__] >= CALLS:
            return fn(*args, **kwargs)
        _calls[fn.__code__] += 1
        if checked is None:
            checked = _every_call(fn, typechecker=checked_once_made)
        return checked(*args, **kwargs)

    return wrapped
