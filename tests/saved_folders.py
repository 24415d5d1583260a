"""Saved folders changed by someone who knows how their digests are made."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tensors_of(folder: Path) -> Path:
    """The file of tensors that a saved folder names."""
    return folder / json.loads((folder / "config.json").read_text(encoding="utf-8"))["tensors"]


def resealed(folder: Path, change: Callable[[Any], Any] = lambda tree: tree) -> None:
    """Give a folder the digests of the tensors in it, and of its tree, which `change` changes or gives anew."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    changed = change(config["tree"])
    config["tree"] = config["tree"] if changed is None else changed
    config["tree_sha256"] = hashlib.sha256(json.dumps(config["tree"], sort_keys=True).encode()).hexdigest()
    config["sha256"] = hashlib.sha256((folder / config["tensors"]).read_bytes()).hexdigest()
    file.write_text(json.dumps(config), encoding="utf-8")
