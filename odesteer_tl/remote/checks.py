"""Checks of what is sent to a remote nnsight server: whether it is being sent, whether it can be, and its bytes.

A server has neither this package nor the user's modules. nnsight sends functions and classes as source where their
module is registered for it, as `odesteer_tl.portable` is; all else is a name that the server looks up, on a
short list of modules. What would fail there is refused here, before anything is sent.
"""

import ast
import copy
import pickletools
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any

import cloudpickle

RUNNING = frozenset("torch math einops numpy typing collections".split())
"""What code may import on every server."""

LOADING = RUNNING | frozenset("builtins time sympy nnterp operator enum pickle cloudpickle copyreg nnsight".split())
"""What a payload may name: nnsight's and pickle's own machinery too."""

DECORATORS = frozenset("property staticmethod classmethod setter getter deleter override final".split())
"""Those that a function keeps, or that leave it as it is. nnsight drops all others, and what they did with them."""

_OF_ANNOTATIONS = frozenset({"_operator", "_functools"})  # how pickle writes Optional[int] and int | None

_SERIALIZATION = "nnsight.intervention.serialization"
_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_MARKS = frozenset({"MARK", "FRAME", "PROTO"})
_COPIES = (copy.copy.__code__, copy.deepcopy.__code__)


def sent_by_nnsight() -> bool:
    """Whether the caller is being pickled by nnsight for a server, and not copied or pickled by anyone else."""
    serialization: Any = sys.modules.get(_SERIALIZATION)
    frame: FrameType | None = sys._getframe(1)
    while serialization is not None and frame is not None and frame.f_code not in _COPIES:
        at_work = type(frame.f_locals.get("self"))
        if issubclass(at_work, cloudpickle.CloudPickler):
            return issubclass(at_work, serialization.CustomCloudPickler)
        frame = frame.f_back
    return False


def check_travels(thing: Any, name: str = "") -> None:
    """Raise ValueError, saying what stands in the way, where `thing` would not arrive on a remote server or not run.

    `name` is what the message calls it. Looked at are the modules that a payload names, and the source of the
    functions in it, but for __init__, which is not called there: what that imports, super(), and decorators. Functions
    whose source cannot be found are refused.
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
            f"{name} cannot be sent to a remote server: {'; '.join(faults)}. A barrier of your own travels as a plain "
            "class, no dataclass, that imports nothing but torch, math, numpy, einops, typing and collections (but "
            "within __init__ what it likes); where it is defined in a module of yours, call nnsight.register(module). "
            "For a model on this machine it may be any object."
        )


def payload_bytes(thing: Any) -> int:
    """Bytes that a method, or a function, adds to a remote request, compressed as nnsight does it.

    Raises ValueError as the sending.
    """
    return len(import_module("zstandard").ZstdCompressor(level=6).compress(_serialised(thing)))


def _serialised(thing: Any) -> bytes:
    return import_module(_SERIALIZATION).dumps(thing)


def _faults(payload: bytes) -> Iterator[str]:
    for said, (module, name) in _named(payload):
        where = f"{module}.{name}"
        if where == "cloudpickle.cloudpickle.subimport":
            if not _listed(said, LOADING):
                yield f"it uses the module {said}, which is not to be had there"
        elif where == f"{_SERIALIZATION}._load_function":
            yield from _faults_of_source(said) if said else ()
        elif where == "cloudpickle.cloudpickle._make_function":
            yield "it has a function whose source cannot be found (made by exec or by a dataclass)"
        elif module in _OF_ANNOTATIONS:
            yield (
                f"it needs {where}, which the server refuses; where an annotation such as Optional[...] or X | None "
                "brings it, begin the file with `from __future__ import annotations`"
            )
        elif not _listed(module, LOADING):
            yield f"it needs {where}, and the server has no module {module.split('.')[0]}"


def _named(payload: bytes) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every global (module, name) that a pickle asks for, with the first string that follows it, or ""."""
    memo: dict[int, Any] = {}
    values: list[Any] = [None]  # what was put on the stack, in order; None for what is neither string nor global
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
    """What would fail there in a function of that source. Kept: a request sends some hundred, mostly the same."""
    return tuple(_faults_in(ast.parse(source)))


def _faults_in(tree: ast.Module) -> Iterator[str]:
    name = getattr(tree.body[0], "name", "lambda")
    if name == "__init__":  # objects arrive made
        return
    for decorator in getattr(tree.body[0], "decorator_list", []):
        if ast.unparse(decorator).split(".")[-1] not in DECORATORS:
            yield (
                f"`{name}` is decorated with @{ast.unparse(decorator)}, and functions arrive without their decorators "
                "(grad modes work as in `with torch.enable_grad():`)"
            )
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
            for module in modules:
                if not _listed(module, RUNNING):
                    yield f"`{name}` imports {module}, which is not to be had there"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("__import__", "import_module"):
            yield f"`{name}` imports by a call, which is not to be had there"
        elif isinstance(node, ast.Call) and ast.unparse(node) == "super()":
            yield f"`{name}` calls super(), which has no class to start from there (name the class it means)"


def _listed(module: str, names: frozenset[str]) -> bool:
    return module.split(".")[0] in names
