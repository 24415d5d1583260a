"""The method in a folder and the model that it was fitted on, or in words why it cannot be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def saved_method(folder: Path, model: str | None) -> tuple[Any, str]:
    """The method that `fit` wrote into `folder`, and the name of its model, or else `model`.

    Raises ValueError where the folder holds no method, or one that nothing can be made of, and where neither says a
    name: the embedded model is not taken for another one.
    """
    import odesteer_tl as ot

    method = _read(lambda: ot.load(folder), folder)
    name = model if model is not None else _read(lambda: method.origin.model_name, folder)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{folder} does not say which model it was fitted on: name it with --model.")
    _read(lambda: [edit.write.hook_name for edit in method.edits(T=0.0)], folder)
    return method, name


def _read(what: Callable[[], Any], folder: Path) -> Any:
    """A file may hold values of any type in any place, so that anything may fail, in any way."""
    try:
        return what()
    except MemoryError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ValueError) else error
        if cause is None or isinstance(cause, ValueError):
            raise
        raise ValueError(
            f"{folder} holds no method that can be used: one of its files is damaged, or holds a value of another kind "
            f"than `fit` writes ({type(cause).__name__})."
        ) from error
