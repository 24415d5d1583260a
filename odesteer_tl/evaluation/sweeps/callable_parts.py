"""Of what a callable is made: code, closure, defaults, globals that it reads, and what its object holds, by name.

Of an installed package's functions and classes the source and the version stand for all of it.
"""

import copyreg
import dis
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
OWN = str(Path(__file__).parents[2])
PASSING = ("call_count", "training")
"""Attributes that use changes and that change no result, as of a pipeline of transformers."""
Parts = Iterator[tuple[str, Any]]


def parts_of(one: Any, apart: bool = False) -> Parts:
    """The named parts of a function, a class, a module or an object. `apart`: what a user's object holds is named
    one by one where `one` is its method."""
    if isinstance(one, types.ModuleType):
        yield "source", version_of(one.__name__) if installed(one) else source_of(one)
    elif isinstance(one, types.MethodType):
        yield from parts_of(one.__func__)
        own, kind = one.__self__, type(one.__self__)
        if apart and (is_dataclass(kind) or not installed(kind)) and not isinstance(own, type):
            yield from (("class", kind), *held_by(own))
        else:
            yield "self", own
    elif isinstance(one, functools.partial):
        yield from (("function", one.func), ("arguments", one.args))
        yield from ((f"argument {name}", value) for name, value in sorted(one.keywords.items()))
    elif isinstance(one, types.FunctionType):
        yield from _of_function(one)
    elif isinstance(one, (types.BuiltinFunctionType, types.MethodWrapperType)):
        if not isinstance(one.__self__, (types.ModuleType, type, type(None))):
            yield "self", one.__self__
    elif isinstance(one, type):
        yield from _of_class(one)
    elif isinstance(one, (staticmethod, classmethod)):
        yield "function", one.__func__
    elif isinstance(one, (property, functools.cached_property)):
        yield "function", one.fget if isinstance(one, property) else one.func
    elif callable(one) and hasattr(one, "__wrapped__"):  # functools.cache
        yield "function", one.__wrapped__
    else:
        yield "class", type(one)
        yield from held_by(one)


def held_by(one: Any) -> Parts:
    """What an object holds, by name: tensors of a module, the vocabulary of a tokenizer (its padding changes while it
    is used), the fields of a dataclass, else what it would be copied from, without cached properties."""
    if isinstance(one, torch.nn.Module):
        yield "modules", [(name, type(part)) for name, part in one.named_modules()]
        yield from sorted([*one.named_parameters(), *one.named_buffers()])
        yield from sorted(
            (name, value) for name, value in vars(one).items()
            if not name.startswith("_") and name not in PASSING and isinstance(value, (bool, int, float, str))
        )  # fmt: skip
    elif isinstance(getattr(one, "_module", None), torch.nn.Module):  # a model of nnsight
        yield from held_by(one._module)
    elif callable(getattr(one, "get_vocab", None)):
        yield "vocabulary", sorted(one.get_vocab().items())
    elif is_dataclass(one):
        yield from ((f"self.{part.name}", getattr(one, part.name, None)) for part in fields(one))
    else:
        own = copyreg.dispatch_table.get(type(one))
        how: Any = own(one) if own else one.__reduce_ex__(4)
        if isinstance(how, str):
            yield "name", how
            return
        _, arguments, state, *items = (*how, None, None)[:5]
        yield "arguments", arguments
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # with slots
            state = (state[0] or {}) | state[1]
        if isinstance(state, dict) and all(isinstance(name, str) for name in state):
            yield from ((f"self.{name}", state[name]) for name in sorted(state) if not _passing(type(one), name))
        else:
            yield "state", state
        yield from (("items", list(part)) for part in items if part is not None)


def _passing(kind: type, name: str) -> bool:
    return name in PASSING or isinstance(getattr(kind, name, None), functools.cached_property)


def _of_function(one: types.FunctionType) -> Parts:
    code, its_own = one.__code__, not installed(one)
    if not its_own and "<locals>" not in one.__qualname__:
        yield "source", source_of(one) + version_of(one.__module__)
        return
    yield "code", code
    defaults = one.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    yield from ((f"default {name}", value) for name, value in zip(names, defaults, strict=True))
    yield from ((f"default {name}", value) for name, value in sorted((one.__kwdefaults__ or {}).items()))
    for name, cell in zip(code.co_freevars, one.__closure__ or (), strict=True):
        try:
            yield f"closure {name}", cell.cell_contents
        except ValueError:  # it is not set yet
            continue
    if its_own:
        known = one.__globals__
        yield from ((f"global {name}", known[name]) for name in sorted(_read(code)) if name in known)


def _of_class(one: type) -> Parts:
    if installed(one):
        yield "source", source_of(one) + version_of(one.__module__)
        return
    yield "bases", one.__bases__
    yield from (
        (name, value)
        for name, value in sorted(vars(one).items())
        if (not name.startswith("__") or isinstance(value, types.FunctionType)) and name != "_abc_impl"
        and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType))
    )  # fmt: skip


def _read(code: types.CodeType) -> set[str]:
    """The globals that code reads, that of functions within it too."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_read(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def installed(one: Any) -> bool:
    """Whether a module, or that of a function or class, is Python's, an installed package's, or this package's."""
    module = one if isinstance(one, types.ModuleType) else sys.modules.get(getattr(one, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or file.startswith((*PACKAGES, OWN))


def version_of(module: str | None) -> str:
    """The version of the package that a module belongs to; empty where it has none."""
    return str(getattr(sys.modules.get((module or "").partition(".")[0]), "__version__", ""))


def source_of(one: Any) -> str:
    """The source of a module, a class or a function; empty where there is none."""
    try:
        return inspect.getsource(one)
    except (OSError, TypeError):
        return ""
