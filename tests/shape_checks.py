"""Shapes are checked in the first calls of each function in each test: every later one would take its time again.

pytest's `--jaxtyping-packages` decorates all functions of the package with `jaxtyping.jaxtyped`. `install` puts one in
its place that stops after CALLS calls of the same function, until `begin_test`: the steps of a flow and the epochs of a
network call the same functions with the same shapes over and over. What beartype makes for a signature is made once,
also where a function within a function is made anew.
"""

from collections.abc import Callable
from functools import wraps
from types import CodeType, FunctionType
from typing import Any

import jaxtyping

CALLS = 3
_calls: dict[CodeType, list[int]] = {}
"""How often this test has called each function."""
_called: list[list[int]] = []
"""Those that it has called."""
_checks: dict[tuple, Callable] = {}
_every_call = jaxtyping.jaxtyped


def install() -> None:
    jaxtyping.jaxtyped = _in_first_calls


def begin_test() -> None:
    for calls in _called:
        calls[0] = 0
    _called.clear()


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
    calls = _calls.setdefault(fn.__code__, [0])  # looked up once: the hash of a function's code takes long

    @wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if calls[0] >= CALLS:
            return fn(*args, **kwargs)
        if not calls[0]:
            _called.append(calls)
        calls[0] += 1
        if checked is None:
            checked = _every_call(fn, typechecker=checked_once_made)
        return checked(*args, **kwargs)

    return wrapped
