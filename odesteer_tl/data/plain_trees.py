"""Checks of a tree of plain values and tensors before it is written to a file, and reading its JSON text."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOST_DEPTH = 64
"""The deepest nesting of values that is written or read."""


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for names given twice, and for NaN and Infinity."""
    return json.loads(text, object_pairs_hook=_with_unique_names, parse_constant=_refuse_constant)


def check_finite(plain: Any, tensors: dict[str, Tensor], whose: str) -> None:
    """Raise ValueError, beginning with `whose`, for NaN or inf among the tensors or the plain values."""
    for name, tensor in tensors.items():
        where = name.removeprefix("tree.")
        if tensor.is_complex():
            raise ValueError(f"{whose} holds complex numbers in {where}.")
        try:
            numbers = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite
            finite = not tensor.is_floating_point() or bool(torch.isfinite(numbers).all())
        except RuntimeError as error:  # 65 axes, or a type of numbers that torch can only hold
            raise ValueError(f"{whose} holds {tensor.dtype} in {where}, which torch cannot check: {error}") from error
        if not finite:
            raise ValueError(f"{whose} holds NaN or inf in {where}: fit again on finite numbers.")

    def look(value: Any, path: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{whose} holds {value} in {path.removeprefix('tree.')}: fit again on finite numbers.")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value if type(value) is list else ()):
            look(item, f"{path}.{key}")

    look(plain, "tree")


def check_depth(plain: Any, whose: str | Path) -> None:
    """Raise ValueError, beginning with `whose`, for values nested deeper than `MOST_DEPTH`. It does not recurse."""
    level, depth = [plain], 0
    while level:
        if depth > MOST_DEPTH:
            raise ValueError(f"{whose} holds values nested deeper than {MOST_DEPTH}, the most that is read.")
        inner = [value.values() if isinstance(value, dict) else value for value in level if type(value) in (dict, list)]
        level, depth = [value for values in inner for value in values], depth + 1


def as_kept(tensor: Tensor, name: str) -> Tensor:
    """A copy of the tensor to be written: on the CPU, contiguous, sharing memory with no other tensor.

    Raises ValueError for a tensor without numbers (meta) and for sparse, nested and quantised ones.
    """
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else str(tensor.layout)
        raise ValueError(f"{name} is a {kind} tensor: only tensors that hold all of their numbers can be saved.")
    return tensor.detach().cpu().contiguous().clone()


def tree_digest(plain: Any) -> str:
    """SHA-256 of the plain values; the order of their names does not matter."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice in one place")
    return values


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")
