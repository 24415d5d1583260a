"""Keeping fitted methods: a folder with `config.json` and the file of tensors that it names.

Only registered methods and the classes in `PARTS` are ever built from a file, and only from their own fields.
"""

from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.activations import Origin
from odesteer_tl.data.field_types import check_fields
from odesteer_tl.data.plain_trees import as_kept
from odesteer_tl.data.storage import read_tree, write_tree
from odesteer_tl.data.targets import check_target
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Fourier, Kernel, Linear, Sketch, Squares
from odesteer_tl.flows.training import Network, NetworkBarrier
from odesteer_tl.methods import Layers, Method, PointwiseMethod
from odesteer_tl.methods.registry import registered
from odesteer_tl.portable.edits import State
from odesteer_tl.portable.sites import check_index

PARTS = (Origin, LogRatioBarrier, Linear, Squares, Kernel, Sketch, Fourier, Network, NetworkBarrier)
"""What methods are made of."""


def saved_classes() -> dict[str, Any]:
    """The classes that are written and read, by the names that stand in the files."""
    return {cls.__name__: cls for cls in (*(entry.method for entry in registered()), *PARTS)}


def save(method: Method, folder: str | Path) -> None:
    """Write a fitted method to `folder` as safetensors and JSON, in place of the one there: all of it, or nothing.

    Raises ValueError for a method that holds an object of the user's own, as its code cannot be kept, for what `load`
    would refuse, such as numbers that are not finite, and for a folder that holds another program's files; OSError
    where the disc refuses.
    """
    check_target(folder)
    kept = _plain(method)
    tree = {"odesteer_tl": _version(), "method": kept}
    write_tree(folder, tree, try_out=lambda: _method(kept, "What is to be saved"))


def load(folder: str | Path) -> Method:
    """Read what `save` wrote. Nothing in the folder is executed.

    Raises ValueError where the folder holds no method of this version's classes, or was changed or damaged since.
    """
    return _method(read_tree(folder).get("method"), f"{folder}")


def _method(tree: Any, whose: str) -> Method:
    """The method of a tree. Raises ValueError, beginning with `whose`, where it makes none that works."""
    try:
        method = _built(tree, whose)
    except RecursionError as error:
        raise ValueError(f"{whose} holds methods within methods, too many to be read.") from error
    if type(method) not in {entry.method for entry in registered()}:
        raise ValueError(f"{whose} holds no fitted method; activations are read with ContrastiveActivations.load.")
    _try_out(method, whose)
    return method


def _try_out(method: Method, whose: str) -> None:
    """Values of the wrong type or shape fail here and not in the middle of a generation."""
    if isinstance(method, Layers):
        for part in method.parts:
            _try_out(part, whose)
        return
    try:
        if method.layer is not None:
            check_index(method.layer)
        if isinstance(method, FeedbackController):
            _run_through(method)
        if not isinstance(method, PointwiseMethod):
            return
        if method.origin.d_model is not None:
            _steer_once(method, method.origin.d_model)
            return
        failed: Exception = ValueError("it holds no numbers")
        for width in sorted(_widths(method)):  # a method that was made by hand does not say it
            try:
                return _steer_once(method, width)
            except Exception as error:
                failed = error
        raise failed
    except Exception as error:
        raise ValueError(f"{whose} holds a {type(method).__name__} whose values do not fit: {error}") from error


MOST_WIDTH = 2**20
"""d_model of what is read; models have 65,536 at most."""


def _steer_once(method: PointwiseMethod, width: int) -> None:
    if not 0 < width <= MOST_WIDTH:
        raise ValueError(f"d_model is {width:,}, and at most {MOST_WIDTH:,} is read")
    moved_on = method.steer(torch.ones(2, width), T=1.0)
    if moved_on.shape != (2, width) or not bool(torch.isfinite(moved_on).all()):
        raise ValueError(f"steer gives {tuple(moved_on.shape)}, or numbers that are not finite")


def _widths(thing: Any) -> set[int]:
    """The d_model that the tensors of a method may belong to: their width, or that without a constant."""
    if isinstance(thing, Tensor):
        return {size for size in (thing.shape[-1], thing.shape[-1] - 1) if size > 0} if thing.ndim else set()
    parts = [getattr(thing, f.name) for f in fields(thing)] if is_dataclass(thing) else thing
    return set().union(*map(_widths, parts)) if isinstance(parts, (list, tuple)) else set()


def _run_through(loop: FeedbackController) -> None:
    a, state = torch.ones(2, loop.directions.shape[-1]), State(torch.arange(2))
    for edit in loop.edits(T=1.0):
        new = edit.apply(a, a, state)
        if new.shape != a.shape or not bool(torch.isfinite(new).all()):
            raise ValueError(f"layer {edit.write.layer} gives {tuple(new.shape)}, or numbers that are not finite")


def _plain(thing: Any) -> Any:
    if saved_classes().get(type(thing).__name__) is type(thing):
        return {"class": type(thing).__name__} | {f.name: _plain(getattr(thing, f.name)) for f in fields(thing)}
    if isinstance(thing, Tensor):
        return as_kept(thing, type(thing).__name__)
    if type(thing) is tuple:
        return [_plain(part) for part in thing]
    if is_dataclass(thing) or not isinstance(thing, (str, int, float, bool, type(None))):
        raise ValueError(
            f"A {type(thing).__name__} cannot be saved: files keep numbers, not code. Save its own parameters and "
            "build the method again around it."
        )
    return thing


def _built(tree: Any, whose: str) -> Any:
    if isinstance(tree, list):
        return tuple(_built(part, whose) for part in tree)
    if not isinstance(tree, dict):
        return tree
    cls = saved_classes().get(str(tree.get("class")))
    if cls is None:
        raise ValueError(f"{whose} holds a {tree.get('class')!r}, which this version of odesteer_tl does not know.")
    names = {f.name for f in fields(cls)}
    if set(tree) - {"class"} != names:
        found = sorted(set(tree) - {"class"})
        raise ValueError(f"{whose}: {cls.__name__} needs the fields {sorted(names)}, found {found}.")
    values = {name: _built(tree[name], whose) for name in names}
    try:
        check_fields(cls, values)
        return cls(**values)
    except Exception as error:  # a value of another type than the field's
        raise ValueError(f"{whose}: {cls.__name__} cannot be built from its values: {error}") from error


def _version() -> str:
    try:
        return version("odesteer_tl")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
