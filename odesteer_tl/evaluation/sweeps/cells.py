"""The folder of a sweep: `protocol.json`, what was asked for, and `cells.jsonl`, one finished cell a line."""

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from odesteer_tl.data.plain_trees import parsed
from odesteer_tl.evaluation.sweeps.folder_lock import LOCK, locked

PROTOCOL, CELLS = "protocol.json", "cells.jsonl"
KEY = ("method", "layer", "position", "strength", "seed")
"""What names a cell of a sweep."""
HOLDS_OTHER = (
    " (what a function or an object keeps between its calls, such as a list or a cache, counts too: an object leaves "
    "it out by __getstate__)"
)
"""Said where a function holds something else than when its folder was begun."""


class Cells:
    """Finished cells by key; with a `folder`, kept there line by line. One process at a time may write a folder."""

    def __init__(
        self,
        folder: str | Path | None,
        protocol: dict[str, Any],
        unread: Sequence[str] = (),
        key: Sequence[str] = KEY,
        holds: Sequence[str] = (),
    ) -> None:
        """Open a new folder, or one of the same protocol, and lock it until `close`. `key`: what names a cell; `holds`:
        what each has beside.

        Raises ValueError for a folder of another protocol, with the difference; for one that holds other files; for one
        that another process writes; and for a damaged line. A last line without its end, of a run that was killed, is
        removed. A folder that has cells is resumed with a warning where there is something `unread`, which the protocol
        cannot compare.
        """
        self._found: dict[str, dict[str, Any]] = {}
        self._key, self._holds = tuple(key), tuple(holds)
        self._file: Path | None = None
        self._lock: IO[bytes] | None = None
        if folder is None:
            return
        folder = Path(folder)
        kept = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(folder)
        try:
            if kept.exists():
                check_same(kept, protocol)
            else:
                _write_whole(kept, protocol)
            self._file = folder / CELLS
            self._read()
        except BaseException:
            self.close()
            raise
        if self._found and unread:
            warnings.warn(
                f"{folder} is resumed, and these cannot be compared with what it was begun with: {'; '.join(unread)}. "
                "Take another folder, out=, if one of them has changed.",
                stacklevel=3,
            )

    def __enter__(self) -> "Cells":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock of the folder."""
        if self._lock is not None:
            self._lock.close()

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The finished cell of this key, or None."""
        return self._found.get(self._name(key))

    def add(self, cell: dict[str, Any]) -> None:
        """Keep a finished cell; when this returns it is on the disc."""
        line = json.dumps(cell, allow_nan=False, ensure_ascii=False) + "\n"
        if self._file is not None:
            with self._file.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        self._found[self._name(cell)] = json.loads(line)

    def __len__(self) -> int:
        return len(self._found)

    def _name(self, cell: dict[str, Any]) -> str:
        return json.dumps([cell[part] for part in self._key])

    def _read(self) -> None:
        assert self._file is not None
        data = self._file.read_bytes() if self._file.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # killed while the last line was written
            with self._file.open("rb+") as stream:
                stream.truncate(len(whole))
                os.fsync(stream.fileno())
        for number, line in enumerate(whole.decode(errors="replace").split("\n")[:-1], 1):
            try:
                cell = parsed(line)
                if lacking := [part for part in self._holds if part not in cell]:
                    raise KeyError(lacking)
                self._found[self._name(cell)] = cell
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"Line {number} of {self._file} is damaged: remove it, the cell is run again.") \
                    from error  # fmt: skip


def check_folder(folder: Path) -> Path:
    """Where the protocol of a folder is or will be. Raises ValueError for a file, and for a folder of other files."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the cells, out=.")
    kept = folder / PROTOCOL
    if folder.exists() and not kept.exists() and any(_other(one.name) for one in folder.iterdir()):
        raise ValueError(f"{folder} holds files, and no {PROTOCOL} of a run: name a new or empty folder, out=.")
    return kept


def finished(folder: Path) -> int:
    """How many cells a folder holds, without its lock."""
    file = folder / CELLS
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def _other(name: str) -> bool:
    """Whether a file is none that a sweep killed at its start leaves."""
    return name not in (LOCK, f"{PROTOCOL}.tmp")


def _write_whole(kept: Path, protocol: dict[str, Any]) -> None:
    unfinished = kept.with_name(f"{PROTOCOL}.tmp")
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(protocol, indent=1, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, kept)


def check_same(kept: Path, protocol: dict[str, Any]) -> None:
    """Raises ValueError where the protocol of a folder, kept in the file `kept`, is another, with the difference."""
    try:
        before = parsed(kept.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{kept} is damaged: name another folder, out=.") from error
    differences = differing(before, json.loads(json.dumps(protocol)))
    if differences:
        holds = any(re.search(r"not as in the folder \(.*(global |closure |self\.)", line) for line in differences)
        hint = HOLDS_OTHER if holds else ""
        raise ValueError(
            f"{kept.parent} holds a run of another protocol: name another folder, out=, or ask for the same{hint}:\n"
            + "\n".join(f"  {line}" for line in differences)
        )


def differing(before: Any, now: Any, where: str = "") -> list[str]:
    """A line for each place where two trees of plain values differ. Digests say nothing to a reader: a line names those
    of one place that differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{where}: {_shown(before)} in the folder, {_shown(now)} now"]
    both = {name: (before.get(name, _NOT), now.get(name, _NOT)) for name in dict.fromkeys([*before, *now])}
    apart = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    digests = [name for name, pair in apart.items() if all(map(_is_digest, pair))]
    told = [f"{where}: not as in the folder ({', '.join(digests)})"] if digests else []
    return told + [
        line
        for name, pair in apart.items()
        if name not in digests
        for line in differing(*pair, f"{where}.{name}" if where else name)
    ]


_NOT = object()
"""In the place of a value that one of two trees does not have."""


def _shown(value: Any) -> str:
    return "not given" if value is _NOT else "given" if isinstance(value, dict) else repr(value)


def _is_digest(value: Any) -> bool:
    return value is _NOT or (isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None)
