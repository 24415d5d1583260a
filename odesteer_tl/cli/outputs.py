"""Where a command writes, looked at before it works."""

import tempfile
from pathlib import Path
from typing import Any

from odesteer_tl.data.targets import check_target


def check_output(folder: Path) -> None:
    """Raise ValueError where a fitted method cannot be kept in `folder`: a file, a folder of something else, such as a
    model, whose own config.json would be lost, or one that cannot be made or written."""
    check_target(folder)
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{folder} cannot be made: {there} is a file.")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}.") from error


def keep(method: Any, folder: Path) -> None:
    """Write a fitted method. Raises ValueError where that fails on the way, as on a disc that is full."""
    import odesteer_tl as ot

    try:
        ot.save(method, folder)
    except Exception as error:  # safetensors has errors of its own
        raise ValueError(f"{folder} cannot be written: {error}.") from error
