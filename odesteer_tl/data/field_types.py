"""Check that plain values read from a file have the types that a dataclass declares for its fields."""

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of another type than its field: a string for a number, true for 1. Tensors and
    objects are checked by the classes themselves."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name} is {value!r}, which is no {getattr(hints[name], '__name__', hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if kind is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint))
    if hint in (None, types.NoneType):
        return value is None
    if hint in _PLAIN:
        return isinstance(value, _PLAIN[hint]) and (hint is bool or not isinstance(value, bool))
    return not isinstance(value, (str, bool, int, float)) or hint is Any or isinstance(hint, str)
