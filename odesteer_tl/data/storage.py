"""Saved folders: a tree of plain values and tensors, kept as `config.json` beside one file of tensors.

Nothing is pickled, and reading executes nothing. A save is atomic: the tensors go into a file of a new name, then
`config.json`, which names that file, replaces the old one in one step. Digests of both files reveal a damaged folder
at load.
"""

import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from odesteer_tl.data.plain_trees import as_kept, check_depth, check_finite, parsed, tree_digest
from odesteer_tl.data.targets import MOST_BYTES, TENSORS, UNFINISHED, check_target, is_format, readable_name
from odesteer_tl.data.tensor_files import MOST_TENSORS, digest_of, read_tensors

FORMAT = 2
"""Version of the layout; unknown versions are refused. Version 1 had no digests, and tensors in tensors.safetensors."""

_ABANDONED_AFTER = 3600.0
"""Seconds. A save deletes unfinished and unnamed files of this package that are older than that."""


def write_tree(folder: str | Path, tree: dict[str, Any], try_out: Callable[[], Any] | None = None) -> None:
    """Write `tree` (dicts, lists, str, int, float, bool, None, tensors) into `folder`, in place of the one there.

    Raises ValueError as `check_target` does, and for a tree that `read_tree` would refuse, for example one with a
    number that is not finite; OSError where the disk refuses; and whatever `try_out` raises, which is called before
    anything is written. After an error the old tree is still complete.
    """
    from safetensors.torch import save_file

    check_target(folder)
    tensors: dict[str, Tensor] = {}

    def detach(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = as_kept(value, path)
            return {"tensor": path}
        if isinstance(value, dict):
            return {key: detach(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [detach(item, f"{path}.{i}") for i, item in enumerate(value)]
        return value

    folder = Path(folder)
    plain = detach(tree, "tree")
    check_finite(plain, tensors, "What is to be saved")
    _check_size(plain, tensors)
    if try_out is not None:
        try_out()
    name = f"tensors-{secrets.token_hex(8)}.safetensors"
    unfinished = [folder / f".{secrets.token_hex(8)}.tmp" for _ in range(2)]
    before, made = _tensor_file(folder), [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, unfinished[0])
        except OSError:
            raise
        except Exception as error:  # safetensors' own
            raise OSError(f"{folder} cannot be written: {error}") from error
        config = {"format": FORMAT, "tensors": name, "sha256": digest_of(unfinished[0]), "tree": plain}
        config["tree_sha256"] = tree_digest(plain)
        unfinished[1].write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for file in unfinished:
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        os.replace(unfinished[0], folder / name)
        try:
            os.replace(unfinished[1], folder / "config.json")
        except BaseException:
            (folder / name).unlink()
            raise
        made = []
    finally:
        for file in unfinished:
            with suppress(OSError):  # it does not exist, or the next save deletes it
                file.unlink()
        for each in made:  # of a save that failed; not empty if another save has written there
            with suppress(OSError):
                each.rmdir()
    _delete_old_files(folder, {before} - {name, None})


def read_tree(folder: str | Path) -> dict[str, Any]:
    """Read what `write_tree` wrote.

    Raises ValueError where the folder holds no such tree or one of another format, where any part was changed, is
    damaged, or exceeds the limits (`MOST_BYTES`, `MOST_DEPTH`, `MOST_TENSORS`), and where the disk refuses.
    """
    try:
        return _read_tree(readable_name(folder))
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.filename or folder}: {error.strerror or error}.") from error


def _read_tree(folder: Path) -> dict[str, Any]:
    for retries in range(20, -1, -1):
        plain, name, digest = _config(folder)
        try:
            tensors = read_tensors(folder / name, digest)
        except FileNotFoundError as gone:  # another save has replaced it meanwhile
            if not retries or _config(folder)[1] == name:
                raise ValueError(f"{folder} is not a saved odesteer_tl folder: it has no {name}.") from gone
            time.sleep(0.01)
        else:
            break
    check_finite(plain, tensors, f"{folder}")
    used: set[str] = set()

    def attach(value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            if set(value) == {"tensor"}:
                if not isinstance(value["tensor"], str) or value["tensor"] not in tensors:
                    raise ValueError(f"{folder / 'config.json'} names a tensor {value['tensor']} that {name} lacks.")
                used.add(value["tensor"])
                return tensors[value["tensor"]]
            return {key: attach(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [attach(item, depth + 1) for item in value]
        return value

    tree = attach(plain, 0)
    if used != set(tensors):
        raise ValueError(
            f"{folder / name} holds tensors that config.json does not name: {sorted(set(tensors) - used)}."
        )
    return tree


def _config(folder: Path) -> tuple[dict[str, Any], str, str | None]:
    """The tree without its tensors, the name of the tensor file, and its digest (None in format 1)."""
    file = folder / "config.json"
    if not file.is_file():
        lacks = "it has no config.json" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} is not a saved odesteer_tl folder: {lacks}.")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"config.json is larger than {MOST_BYTES:,} bytes, the most that is read")
        text = file.read_text(encoding="utf-8")
        config = parsed(text)
    except (ValueError, OSError, RecursionError) as error:  # the parsers' own errors do not name the file
        raise ValueError(f"{folder} cannot be read: {error}") from error
    if not is_format(config):
        raise ValueError(f"{folder} is not a saved odesteer_tl folder: its config.json is of something else.")
    version = config["format"]
    if version == 1 and isinstance(config.get("tree"), dict):
        plain, name, digest = config["tree"], "tensors.safetensors", None
    elif version == FORMAT and set(config) == {"format", "tensors", "sha256", "tree", "tree_sha256"}:
        plain, name, digest = config["tree"], config["tensors"], config["sha256"]
        if not TENSORS.fullmatch(str(name)) or not isinstance(digest, str):
            raise ValueError(f"{file} is damaged: it names no tensors of this package. Save the method again.")
    else:
        raise ValueError(f"{file} has format {version}; this version of odesteer_tl reads formats 1 and {FORMAT}.")
    check_depth(plain, file)
    if digest is not None and config["tree_sha256"] != tree_digest(plain):
        raise ValueError(f"{file} was changed or damaged since it was saved (its digest differs): save it again.")
    return plain, name, digest


def _delete_old_files(folder: Path, old_files: set[Any]) -> None:
    """Delete the tensors of the previous save, and files that killed saves have left."""
    current, now = _tensor_file(folder), time.time()
    for file in folder.iterdir():
        is_ours = TENSORS.fullmatch(file.name) or UNFINISHED.fullmatch(file.name)
        try:
            abandoned = is_ours and file.name != current and now - file.lstat().st_mtime > _ABANDONED_AFTER
            if abandoned or (file.name in old_files and file.name != current):
                file.unlink()
        except OSError:  # another save has deleted it, or a reader holds it open: the next save tries again
            continue


def _tensor_file(folder: Path) -> str | None:
    """The tensor file that the folder's `config.json` names; None where it names none."""
    try:
        return _config(folder)[1]
    except ValueError:
        return None


def _check_size(plain: Any, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError for a tree that exceeds the limits of reading, before the folder is touched."""
    whose = "What is to be saved"
    check_depth(plain, whose)
    try:
        size = len(json.dumps({"tree": plain}, indent=1)) + 1_000  # for the digests beside it
    except TypeError as error:
        raise ValueError(f"{whose} holds a value that is no number, text or tensor: {error}.") from error
    if size > MOST_BYTES:
        raise ValueError(f"{whose} holds {size:,} bytes beside its tensors; the most that is kept is {MOST_BYTES:,}.")
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"{whose} holds {len(tensors):,} tensors; the most that is kept is {MOST_TENSORS:,}.")
