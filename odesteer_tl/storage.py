"""Folders of numbers: a tree of plain values and tensors, kept as `config.json` beside `tensors.safetensors`.

Nothing here pickles, and nothing that is read can execute.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = 1
"""Version of the layout; a reader refuses what it does not know."""


def write_tree(folder: str | Path, tree: dict[str, Any]) -> None:
    """Write `tree` (dicts, lists, str, int, float, bool, None, tensors) into `folder`."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}

    def detach(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"tensor": path}
        if isinstance(value, dict):
            return {key: detach(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [detach(item, f"{path}.{i}") for i, item in enumerate(value)]
        return value

    folder = Path(folder)
    config = {"format": FORMAT, "tree": detach(tree, "tree")}
    text = json.dumps(config, indent=1)  # fails on anything that is no plain value, before the folder is touched
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    save_file(tensors, folder / "tensors.safetensors")


def read_tree(folder: str | Path) -> dict[str, Any]:
    """Read what `write_tree` wrote. Raises ValueError where the folder holds no such tree, or one of another format."""
    from safetensors.torch import load_file

    folder = Path(folder)
    config_file, tensor_file = folder / "config.json", folder / "tensors.safetensors"
    for file in (config_file, tensor_file):
        if not file.is_file():
            raise ValueError(f"{folder} is not a saved odesteer_tl folder: it has no {file.name}.")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        tensors = load_file(tensor_file)
    except Exception as error:  # the parsers' own errors do not name the file
        raise ValueError(f"{folder} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or not isinstance(config.get("tree"), dict):
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{config_file} has format {found}; this version of odesteer_tl reads format {FORMAT}.")

    def attach(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {"tensor"}:
                if not isinstance(value["tensor"], str) or value["tensor"] not in tensors:
                    raise ValueError(f"{config_file} names a tensor {value['tensor']} that {tensor_file} lacks.")
                return tensors[value["tensor"]]
            return {key: attach(item) for key, item in value.items()}
        if isinstance(value, list):
            return [attach(item) for item in value]
        return value

    return attach(config["tree"])
