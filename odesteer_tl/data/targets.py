"""Which folders a save may write to: none that holds what another program has put there."""

import json
import os
import re
from pathlib import Path
from typing import Any

MOST_BYTES = 2**24
"""Of a `config.json` that is written or read."""

MOST_FOLDERS = 100
"""Within folders, of a folder that is written to: making them takes Python a call each."""

TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp|\.tmp[0-9A-Za-z]{6}")
"""What a save that was killed leaves: a file of ours, or the one that safetensors writes before it takes its name."""


def check_target(folder: str | Path) -> None:
    """Raise ValueError where a tree is not to be written: no name, a file, or a folder of something else, such as a
    model, whose own `config.json` would be lost. Raises OSError where the disc does not let it be looked at."""
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
    elif folder.is_dir() and any(map(_of_others, folder.iterdir())):
        raise ValueError(f"{folder} holds other files: choose a new folder, or an empty one.")


def _is_ours(config: Path) -> bool:
    try:
        return config.stat().st_size <= MOST_BYTES and is_format(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        return False


def is_format(config: Any) -> bool:
    """Whether what a `config.json` holds is of this package, in any version of the layout."""
    return isinstance(config, dict) and type(config.get("format")) is int and isinstance(config.get("tree"), dict)


def _of_others(file: Path) -> bool:
    """Whether a file of a folder is none that a save, which may be at work, has put there."""
    name = file.name
    return name != "config.json" and not TENSORS.fullmatch(name) and not UNFINISHED.fullmatch(name)


def readable_name(folder: str | Path) -> Path:
    """The folder, where it has a name that all readers take. Raises ValueError where it has none."""
    if not str(folder):
        raise ValueError('The folder has no name: "" was given. For the current folder type ".".')
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # the bytes of another encoding, which safetensors does not open
        raise ValueError(f"The name of the folder {str(folder)!r} is not UTF-8: choose another name.") from None
    return Path(folder)
