"""Checks of objects that are sent to a remote nnsight server: whether they can be sent, and how large they are.

A server has neither this package nor the user's modules. nnsight sends functions and classes as source if their module
is registered for this, as `odesteer_tl.portable` is. Everything else is a name that the server looks up in a short list
of modules. An object that would fail there is refused here, before anything is sent.
"""

import ast
import copy
import pickletools
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any, ClassVar

import cloudpickle

RUNNING = frozenset("torch math einops numpy typing collections".split())
"""The modules that code may import on every server."""

LOADING = RUNNING | frozenset("builtins time sympy nnterp operator enum pickle cloudpickle copyreg nnsight".split())
"""The modules that a payload may name, including those that nnsight and pickle use themselves."""

DECORATORS = frozenset("property staticmethod classmethod setter getter deleter override final".split())
"""The decorators that nnsight keeps, or that do not change the function. nnsight drops all others, with their
effect."""

_OF_ANNOTATIONS = frozenset({"_operator", "_functools"})  # how pickle writes Optional[int] and int | None

_SERIALIZATION = "nnsight.intervention.serialization"
_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_MARKS = frozenset({"MARK", "FRAME", "PROTO"})
_COPIES = (copy.copy.__code__, copy.deepcopy.__code__)


def sent_by_nnsight() -> bool:
    """Whether nnsight is pickling the caller for a server; False if it is copied, or pickled by something else."""
    serialization: Any = sys.modules.get(_SERIALIZATION)
    frame: FrameType | None = sys._getframe(1)
    while serialization is not None and frame is not None and frame.f_code not in _COPIES:
        pickler = type(frame.f_locals.get("self"))
        if issubclass(pickler, cloudpickle.CloudPickler):
            return issubclass(pickler, serialization.CustomCloudPickler)
        frame = frame.f_back
    return False


class StaysHere:
    """What is not sent to a server. In a remote trace it raises ValueError: a trace sends what it names, as a whole,
    and the server would only say that it does not have this package. `usual_name` of the variable that holds it, and
    `usual_part`, what a trace needs of it, are for the message."""

    usual_name: ClassVar[str]
    usual_part: ClassVar[str] = "method"

    def __reduce_ex__(self, protocol: Any) -> Any:
        if sent_by_nnsight():
            raise ValueError(
                f"A {type(self).__name__} is not sent to a server, and a trace sends what it names, as a whole: name "
                f"what you need of it before the trace, as in {self.usual_part} = {self.usual_name}.{self.usual_part}, "
                "and its numbers too."
            )
        return super().__reduce_ex__(protocol)


def check_travels(thing: Any, name: str = "") -> None:
    """Raise ValueError, with the reasons, if `thing` cannot be sent to a remote server or would not run there.

    `name` is its name in the message. This checks the modules that the payload names, and the source of its functions:
    imports, super() and decorators. `__init__` is not checked, because the server does not call it. Functions without
    source are refused.
    """
    name = name or f"This {type(thing).__name__}"
    try:
        payload = _serialised(thing)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be sent to a remote server: {error}") from error
    faults = sorted(set(_faults(payload)))
    if faults:
        raise ValueError(
            f"{name} cannot be sent to a remote server: {'; '.join(faults)}. Write a barrier of your own as a plain "
            "class, no dataclass, that imports only torch, math, numpy, einops, typing and collections (anything "
            "within __init__); if it is defined in a module of yours, call nnsight.register(module). For a model on "
            "this machine it may be any object."
        )


def payload_bytes(thing: Any) -> int:
    """The number of bytes that a method or a function adds to a remote request, with nnsight's compression.

    Raises ValueError as sending does.
    """
    return len(import_module("zstandard").ZstdCompressor(level=6).compress(_serialised(thing)))


def _serialised(thing: Any) -> bytes:
    return import_module(_SERIALIZATION).dumps(thing)


def _faults(payload: bytes) -> Iterator[str]:
    for argument, (module, name) in _globals_in(payload):
        global_name = f"{module}.{name}"
        if global_name == "cloudpickle.cloudpickle.subimport":
            if not _listed(argument, LOADING):
                yield f"it uses the module {argument}, which the server does not have"
        elif global_name == f"{_SERIALIZATION}._load_function":
            yield from _faults_of_source(argument) if argument else ()
        elif global_name == "cloudpickle.cloudpickle._make_function":
            yield "it has a function whose source cannot be found (made by exec or by a dataclass)"
        elif module in _OF_ANNOTATIONS:
            yield (
                f"it needs {global_name}, which the server refuses; if it comes from an annotation such as "
                "Optional[...] or X | None, begin the file with `from __future__ import annotations`"
            )
        elif not _listed(module, LOADING):
            yield f"it needs {global_name}, and the server has no module {module.split('.')[0]}"


def _globals_in(payload: bytes) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every global (module, name) that a pickle names, after the string that directly follows it, or ""."""
    memo: dict[int, Any] = {}
    values: list[Any] = [
        None
    ]  # the values put on the stack, in order; None for a value that is neither string nor global
    for op, arg, _ in pickletools.genops(payload):
        if op.name in _MARKS:
            continue
        if op.name == "MEMOIZE":
            memo[len(memo)] = values[-1]
            continue
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(arg or 0)] = values[-1]
            continue
        value: Any = None
        if op.name in _STRINGS:
            value = str(arg)
        elif op.name in ("GET", "BINGET", "LONG_BINGET"):
            value = memo.get(int(arg or 0))
        elif op.name == "STACK_GLOBAL":
            value = (values[-2], values[-1])
        elif op.name == "GLOBAL":
            module, _, name = str(arg).partition(" ")
            value = (module, name)
        if isinstance(values[-1], tuple):
            yield (value if isinstance(value, str) else ""), values[-1]
        values.append(value)


@cache
def _faults_of_source(source: str) -> tuple[str, ...]:
    """The faults of a function with this source. They are cached: a request sends some hundred, mostly the same."""
    return tuple(_faults_in(ast.parse(source)))


def _faults_in(tree: ast.Module) -> Iterator[str]:
    name = getattr(tree.body[0], "name", "lambda")
    if name == "__init__":  # objects are sent initialised
        return
    for decorator in getattr(tree.body[0], "decorator_list", []):
        if ast.unparse(decorator).split(".")[-1] not in DECORATORS:
            yield (
                f"`{name}` is decorated with @{ast.unparse(decorator)}, and functions are sent without their "
                "decorators (for grad modes write `with torch.enable_grad():`)"
            )
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
            for module in modules:
                if not _listed(module, RUNNING):
                    yield f"`{name}` imports {module}, which the server does not have"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("__import__", "import_module"):
            yield f"`{name}` imports by a function call, which the server does not allow"
        elif isinstance(node, ast.Call) and ast.unparse(node) == "super()":
            yield f"`{name}` calls super(), which does not work on the server (write the name of the class instead)"


def _listed(module: str, names: frozenset[str]) -> bool:
    return module.split(".")[0] in names
