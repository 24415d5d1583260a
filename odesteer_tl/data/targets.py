"""Which folders a save may write to: never one that holds files of another program."""

import json
import os
import re
from pathlib import Path
from typing import Any

MOST_BYTES = 2**24
"""The largest `config.json` that is written or read."""

MOST_FOLDERS = 100
"""The most parent folders of a folder that is written to: Python makes them by recursion."""

TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp|\.tmp[0-9A-Za-z]{6}")
"""Unfinished files of a killed save: one of this package, or the temporary file of safetensors."""


def check_target(folder: str | Path) -> None:
    """Raise ValueError where a tree must not be written: for no name, a file, and a folder of something else, such as a
    model, whose own `config.json` would be lost. Raises OSError where the disk refuses to be read."""
    folder = readable_name(folder)
    if len(folder.parts) > MOST_FOLDERS:
        raise ValueError(f"{folder} lies within more than {MOST_FOLDERS} folders: choose another folder.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a fitted method is kept in a folder.")
    config = folder / "config.json"
    if config.is_symlink():
        raise ValueError(f"{folder} holds a config.json that is a link to something else: choose another folder.")
    if os.path.lexists(config):
        if not config.is_file() or not _is_ours(config):
            raise ValueError(f"{folder} holds a config.json of something else, such as a model: choose another folder.")
    elif folder.is_dir() and any(map(_is_foreign, folder.iterdir())):
        raise ValueError(f"{folder} holds other files: choose a new folder, or an empty one.")


def _is_ours(config: Path) -> bool:
    try:
        return config.stat().st_size <= MOST_BYTES and is_format(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        return False


def is_format(config: Any) -> bool:
    """Whether a `config.json` was written by this package, in any version of the layout."""
    return isinstance(config, dict) and type(config.get("format")) is int and isinstance(config.get("tree"), dict)


def _is_foreign(file: Path) -> bool:
    """Whether no save of this package, finished or not, has written the file."""
    name = file.name
    return name != "config.json" and not TENSORS.fullmatch(name) and not UNFINISHED.fullmatch(name)


def readable_name(folder: str | Path) -> Path:
    """The folder as a path. Raises ValueError for an empty name, and for one that safetensors cannot open."""
    if not str(folder):
        raise ValueError('The folder has no name: "" was given. For the current folder type ".".')
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # the bytes of another encoding, which safetensors does not open
        raise ValueError(f"The name of the folder {str(folder)!r} is not UTF-8: choose another name.") from None
    return Path(folder)
