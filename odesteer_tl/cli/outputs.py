"""Output folders: checked before a command does its work, and written after it."""

import tempfile
from pathlib import Path
from typing import Any

from odesteer_tl.data.targets import check_target


def check_output(folder: Path) -> None:
    """Raise ValueError if a fitted method cannot be saved in `folder`: it is a file, a folder of something else (such
    as a model, whose config.json would be lost), or it cannot be made or written."""
    check_target(folder)
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Raise ValueError if nothing can be written into `folder`, or it cannot be made."""
    ancestor = folder.absolute()
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise ValueError(f"{folder} cannot be made: {ancestor} is a file.")
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}.") from error


def keep(method: Any, folder: Path) -> None:
    """Write a fitted method. Raises ValueError if writing fails, for example on a full disc."""
    import odesteer_tl as ot

    try:
        ot.save(method, folder)
    except Exception as error:  # safetensors has its own error types
        raise ValueError(f"{folder} cannot be written: {error}.") from error
