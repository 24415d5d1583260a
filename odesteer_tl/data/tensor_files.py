"""Files of tensors: read whole, with the length and the digest that they should have, or refused."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from odesteer_tl._memory import check_room

MOST_TENSORS = 10_000
"""Of a file of them that is written or read."""

_HEADER = 10**8
"""Bytes of a header that safetensors reads at most."""


def read_tensors(file: Path, digest: str | None) -> dict[str, Tensor]:
    """The tensors of a file, copied. `digest` None compares none.

    Raises ValueError where the file is damaged, or larger than what is read; FileNotFoundError where it is gone.
    """
    from safetensors import safe_open

    if not file.is_file():
        raise FileNotFoundError(file)
    _check_length(file)
    if digest is not None and digest_of(file) != digest:
        raise ValueError(f"{file} was changed or damaged since it was saved (its digest differs): save it again.")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            if len(names) > MOST_TENSORS:
                raise ValueError(f"it holds {len(names):,} tensors; the most that is read is {MOST_TENSORS:,}")
            # Copies: what safetensors returns is the file itself, and changes or fails with it.
            return {name: opened.get_tensor(name).clone() for name in names}
    except Exception as error:  # safetensors has an error of its own for a file that is gone
        if not file.exists():
            raise FileNotFoundError(file) from error
        raise ValueError(f"{file} cannot be read: {error}") from error


def _check_length(file: Path) -> None:
    """Raise ValueError, before all of it is read, for a file that is longer or shorter than its header says, or larger
    than this machine's memory: a few bytes on a disc may stand for any number of zeros."""
    size = file.stat().st_size
    check_room(size, torch.device("cpu"), f"{file}", "load it on a larger machine.")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if length <= min(size, _HEADER) else {}
            ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0) == size
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            whole = False
    if not whole:
        raise ValueError(
            f"{file} was changed or damaged since it was saved (it has not the length that it says): save it again."
        )


def digest_of(file: Path) -> str:
    """The SHA-256 of a file, read in parts."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
