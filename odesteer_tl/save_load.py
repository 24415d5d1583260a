"""Saves fitted methods in folders: `config.json`, and the file of tensors that it names.

Only registered methods and the classes in `PARTS` are built from a file, and only from their own fields.
"""

from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.field_types import check_fields
from odesteer_tl.data.origin import Origin
from odesteer_tl.data.plain_trees import as_kept
from odesteer_tl.data.storage import read_tree, write_tree
from odesteer_tl.data.targets import check_target
from odesteer_tl.flows.barriers import Differentiated, LogRatioBarrier
from odesteer_tl.flows.features import Fourier, Kernel, Linear, Sketch, Squares
from odesteer_tl.flows.networks import Network, NetworkBarrier
from odesteer_tl.methods import Calibrated, Layers, Method, PointwiseMethod
from odesteer_tl.methods.registry import registered
from odesteer_tl.portable.edits import State
from odesteer_tl.portable.sites import check_index

PARTS = (Origin, LogRatioBarrier, Linear, Squares, Kernel, Sketch, Fourier, Network, NetworkBarrier)
"""The classes of the parts of methods."""

ADDED = MappingProxyType({"ODESteer": {"until": None}, "GradientFlow": {"until": None}})
"""Fields that files of earlier versions lack, with the values that mean what those versions did."""


def saved_classes() -> dict[str, Any]:
    """The classes that can be saved and loaded, by their names in the files."""
    return {cls.__name__: cls for cls in (*(entry.method for entry in registered()), *PARTS)}


def save(method: Any, folder: str | Path) -> None:
    """Write a fitted method to `folder` as safetensors and JSON. It replaces a method there, completely or not at all.

    Raises ValueError for a method that is a user's object or holds one, because code is not saved; for one that `load`
    would refuse, for example with numbers that are not finite; and for a folder that holds another program's files.
    Raises OSError if writing fails.
    """
    check_target(folder)
    method_tree = _plain(method)
    tree = {"odesteer_tl": _version(), "method": method_tree}
    write_tree(folder, tree, try_out=lambda: _method(method_tree, "What is to be saved"))


def load(folder: str | Path) -> Method:
    """Read a method that `save` wrote. Nothing in the folder is executed.

    Raises ValueError if the folder holds no method of a class that this version knows, or was changed or damaged.
    """
    return _method(read_tree(folder).get("method"), f"{folder}")


def _method(tree: Any, whose: str) -> Method:
    """The method of a tree. Raises ValueError, beginning with `whose`, if it gives no method that works."""
    try:
        method = _built(tree, whose)
    except RecursionError as error:
        raise ValueError(f"{whose} holds methods within methods, too many to be read.") from error
    if type(method) not in {entry.method for entry in registered()}:
        raise ValueError(f"{whose} holds no fitted method; activations are read with ContrastiveActivations.load.")
    _try_out(method, whose)
    return method


def _try_out(method: Method, whose: str) -> None:
    """Run the method once, so that values of the wrong type or shape fail here and not during a generation."""
    if isinstance(method, Layers):
        for part in method.parts:
            _try_out(part, whose)
        return
    if isinstance(method, Calibrated):
        return _try_out(method.method, whose)
    try:
        if method.layer is not None:
            check_index(method.layer)
        if isinstance(method, FeedbackController):
            _run_edits_once(method)
        if not isinstance(method, PointwiseMethod):
            return
        if method.origin.d_model is not None:
            _steer_once(method, method.origin.d_model)
            return
        failed: Exception = ValueError("it holds no numbers")
        for width in sorted(_widths(method)):  # a method made by hand does not have a d_model
            try:
                return _steer_once(method, width)
            except Exception as error:
                failed = error
        raise failed
    except Exception as error:
        raise ValueError(f"{whose} holds a {type(method).__name__} whose values do not fit: {error}") from error


MAX_WIDTH = 2**20
"""The largest d_model that is read; models have at most 65,536."""


def _steer_once(method: PointwiseMethod, width: int) -> None:
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"d_model is {width:,}, and at most {MAX_WIDTH:,} is read")
    steered = method.steer(torch.ones(2, width, device="cpu"), T=1.0)
    if steered.shape != (2, width) or not bool(torch.isfinite(steered).all()):
        raise ValueError(f"steer gives {tuple(steered.shape)}, or numbers that are not finite")


def _widths(value: Any) -> set[int]:
    """The possible d_model of a method, by its tensors: their width, or their width without a constant column."""
    if isinstance(value, Tensor):
        return {size for size in (value.shape[-1], value.shape[-1] - 1) if size > 0} if value.ndim else set()
    parts = [getattr(value, f.name) for f in fields(value)] if is_dataclass(value) else value
    return set().union(*map(_widths, parts)) if isinstance(parts, (list, tuple)) else set()


def _run_edits_once(loop: FeedbackController) -> None:
    a, state = torch.ones(2, loop.directions.shape[-1], device="cpu"), State(torch.arange(2, device="cpu"))
    for edit in loop.edits(T=1.0):
        new = edit.apply(a, a, state)
        if new.shape != a.shape or not bool(torch.isfinite(new).all()):
            raise ValueError(f"layer {edit.write.layer} gives {tuple(new.shape)}, or numbers that are not finite")


def _plain(value: Any) -> Any:
    if saved_classes().get(type(value).__name__) is type(value):
        return {"class": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Tensor):
        return as_kept(value, type(value).__name__)
    if type(value) is tuple:
        return [_plain(part) for part in value]
    if is_dataclass(value) or not isinstance(value, (str, int, float, bool, type(None))):
        own = value.barrier if isinstance(value, Differentiated) else value
        raise ValueError(
            f"A {type(own).__name__} cannot be saved: files keep numbers, not code. Save its own parameters and "
            "build the method again around it."
        )
    return value


def _built(tree: Any, whose: str) -> Any:
    if isinstance(tree, list):
        return tuple(_built(part, whose) for part in tree)
    if not isinstance(tree, dict):
        return tree
    cls = saved_classes().get(str(tree.get("class")))
    if cls is None:
        raise ValueError(f"{whose} holds a {tree.get('class')!r}, which this version of odesteer_tl does not know.")
    tree, names = {**ADDED.get(cls.__name__, {}), **tree}, {f.name for f in fields(cls)}
    if set(tree) - {"class"} != names:
        given = sorted(set(tree) - {"class"})
        raise ValueError(f"{whose}: {cls.__name__} needs the fields {sorted(names)}, found {given}.")
    values = {name: _built(tree[name], whose) for name in names}
    try:
        check_fields(cls, values)
        return cls(**values)
    except Exception as error:  # a value may have another type than its field
        raise ValueError(f"{whose}: {cls.__name__} cannot be built from its values: {error}") from error


def _version() -> str:
    try:
        return version("odesteer_tl")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
