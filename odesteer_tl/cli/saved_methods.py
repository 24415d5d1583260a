"""Loads the method in a folder and the name of its model, or raises an error that says why it cannot be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def saved_method(folder: Path, model: str | None) -> tuple[Any, str]:
    """The method that `fit` wrote into `folder`, and `model`, or if that is None the name of the method's model.

    Raises ValueError if the folder holds no method that works, and if neither gives a name: the embedded model is never
    used instead of another one.
    """
    import odesteer_tl as ot

    method = _attempt(lambda: ot.load(folder), folder)
    name = model if model is not None else _attempt(lambda: method.origin.model_name, folder)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{folder} does not say which model it was fitted on: give it with --model.")
    _attempt(lambda: [edit.write.hook_name for edit in method.edits(T=0.0)], folder)
    return method, name


def _attempt(action: Callable[[], Any], folder: Path) -> Any:
    """The result of `action`. A damaged file may hold values of any type, so every error becomes a ValueError."""
    try:
        return action()
    except MemoryError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ValueError) else error
        if cause is None or isinstance(cause, ValueError):
            raise
        raise ValueError(
            f"{folder} holds no method that can be used: one of its files is damaged, or holds a value of another kind "
            f"than `fit` writes ({type(cause).__name__}). Fit it again."
        ) from error


def carries_strength(method: Any) -> bool:
    """Whether a method, or every part of it, says at which strength it steers."""
    from odesteer_tl.portable.method_list import pairs_of

    try:
        return bool(pairs_of(method, None, None))
    except ValueError:
        return False


def was_chat(method: Any) -> bool:
    """Whether the strength that a method carries was found on prompts in a chat template."""
    return any(getattr(part, "chat", False) for part in (method, *getattr(method, "parts", ())))
