"""Whether a file can be written, before the work whose result it is to hold."""

import os
import tempfile
from pathlib import Path


def check_writable_file(file: Path) -> None:
    """Raise ValueError for a folder of that name, a missing or read-only folder, and a read-only file."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file in it.")
    folder = Path(os.path.realpath(file)).parent
    if not folder.is_dir():
        raise ValueError(f"{file} cannot be written: there is no folder {folder}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        writable = not file.exists() or os.access(file, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"{file} cannot be written: choose a file or folder with write permission.")
