"""Fingerprints of callables: whether a judge, a metric or a fit is the one that a folder was begun with.

`fingerprint(judge)` names its parts, such as `code`, `closure weights`, `global WORDS`, `default k` and `self.bias`,
each with a digest of all that it holds: tensors and arrays whole, functions with what they close over.
"""

import enum
import hashlib
import types
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from odesteer_tl.evaluation.sweeps.callable_parts import installed, parts_of

PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, type(...))


def fingerprint(one: Any) -> tuple[dict[str, str], list[str]]:
    """The digest of each part of a callable, and the parts that nothing here can compare."""
    walk = _Walk()
    found = {"name": _name(one)}
    try:
        for name, part in parts_of(one, apart=True):
            found[name] = walk.digest(part, name)
    except Exception as error:
        walk.unread.append(f"{_name(one)} ({type(error).__name__})")
    return found, walk.unread


@dataclass
class _Walk:
    """One walk through values: `unread` names what it cannot read. `done` holds each value that was read, so that its
    id stays its own; `inside` those that are being read, of which one may hold itself."""

    unread: list[str] = field(default_factory=list)
    done: dict[int, tuple[Any, str]] = field(default_factory=dict)
    inside: list[int] = field(default_factory=list)

    def digest(self, value: Any, where: str) -> str:
        if isinstance(value, PLAIN):
            return _hash(type(value).__qualname__, repr(value))
        key, before = id(value), len(self.unread)
        if key in self.done:
            return self.done[key][1]
        if key in self.inside:
            return f"cycle {len(self.inside) - self.inside.index(key)}"
        self.inside.append(key)
        try:
            found = self._of(value, where)
        except Exception as error:  # of a lock, a socket, a generator: many types, also of the user's own
            self.unread.append(f"{where} ({type(value).__qualname__}: {type(error).__name__})")
            found = _hash("unread", _name(type(value)))
        if len(self.unread) > before and _of_a_package(value):  # the rest of it, as of a client, changes with use
            self.unread[before:] = [f"{where} ({type(value).__qualname__})"]
            found = _hash("unread", _name(type(value)))
        self.inside.pop()
        self.done[key] = (value, found)
        return found

    def _of(self, value: Any, where: str) -> str:
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            return _hash("tensor", str(value.dtype), str(tuple(value.shape)), flat.numpy().tobytes())
        if type(value).__module__ == "numpy" and getattr(value, "dtype", None) not in (None, np.dtype(object)):
            return _hash("array", str(value.dtype), str(value.shape), value.tobytes())
        if type(value) is dict:
            pairs = ((f"[{key!r:.40}]", one) for key, own in value.items() for one in (key, own))
            return _hash("dict", *self._each(pairs, where))
        if type(value) in (list, tuple):
            return _hash(type(value).__name__, *self._each(((f"[{i}]", one) for i, one in enumerate(value)), where))
        if isinstance(value, Set):
            return _hash("set", *sorted(self._each((("{}", one) for one in value), where)))
        if isinstance(value, types.CodeType):
            return _hash(value.co_code, *value.co_names, *value.co_varnames, self.digest(value.co_consts, where))
        named = [f"{name} {self.digest(part, f'{where}: {name}')}" for name, part in parts_of(value)]
        return _hash("object", _name(value), *named)

    def _each(self, items: Iterable[tuple[str, Any]], where: str) -> Iterator[str]:
        return (self.digest(value, f"{where}{name}") for name, value in items)


def _of_a_package(value: Any) -> bool:
    kind = type(value)
    return kind.__module__ not in ("builtins", "functools") and installed(kind) and not isinstance(value, type)


def _name(one: Any) -> str:
    """The name without the module: a script is __main__, and has a name of its own where it is imported."""
    return str(getattr(one, "__qualname__", None) or type(one).__qualname__)


def _hash(*parts: str | bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        sha.update(f"{len(data)}:".encode() + data)
    return sha.hexdigest()[:16]
