"""Texts, models, saved methods and folders, good ones and such as a command line must refuse in words."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import torch
from safetensors.torch import load_file, save_file
from saved_folders import resealed, tensors_of

import odesteer_tl as ot

GOOD = ["the film is great", "a fine plot", "we saw it and it was good", "truly great", "great and never dull"]
BAD = ["the film is bad", "a dull plot", "we saw it and it was slow", "truly bad", "slow and never great"]


def hostile_files(folder: Path) -> dict[str, list[str]]:
    """Makes all of them in `folder`, and returns their paths by kind."""
    texts = {
        "good.txt": "\n".join(GOOD * 4),
        "bad.txt": "\n".join(BAD * 4),
        "asked.txt": "\n".join(["the film", "we saw"] * 10),
    }
    hostile = {
        "bom.txt": b"\xef\xbb\xbfthe film\r\na plot\r\n", "latin.txt": "génial\n".encode("latin-1"), "empty.txt": b"",
        "utf16.txt": "the film\n".encode("utf-16"), "utf32.txt": "the film\n".encode("utf-32"), "nul.txt": b"a\0b\n",
        "blank.txt": b"\n \r\n\t\n", "long.txt": b"the film " * 3000, "one.txt": b"film", "same.txt": b"film\n" * 20,
        "gap.txt": b"the film\n\na plot\n", "bytes.txt": bytes(range(256)), "odd.txt": "\u2028\n\x85\n🙂".encode(),
        "list.json": b"[1, 2]", "deep.json": b"[" * 100_000, "cell.json": b'[{"way": 3}]',
        "nan.json": b'[{"way": "w", "method": "m", "family": "f", "prompts": "p", "cache": true, "deviation": "x", '
        b'"effect": NaN}]',
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, data in hostile.items():
        (folder / name).write_bytes(data)
    (folder / "cells.json").write_text("[]")
    for name in ("empty", "full/of"):
        (folder / name).mkdir(parents=True)
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "loop").symlink_to("loop")
    (folder / "away.txt").symlink_to("nowhere")
    good = folder / "model"
    models.hugging_face("llama").save_pretrained(good)
    models.tokenizer().save_pretrained(good)
    return {
        "texts": [str(folder / name) for name in texts],
        "hostile texts": [str(folder / name) for name in [*hostile, "loop", "away.txt", "absent.txt"]] + ["-"],
        "folders": [str(folder / name) for name in ("empty", "full", "absent", "loop")] + ["/proc", "/dev/null"],
        "cells": [str(folder / "cells.json")],
        "models": [str(good)],
        "hostile models": _hostile_models(good),
        "methods": _methods(folder, str(good)),
        "hostile methods": _hostile_methods(folder),
    }


def _hostile_models(good: Path) -> list[str]:
    made = []

    def copied(name: str) -> Path:
        made.append(str(good.parent / name))
        return Path(shutil.copytree(good, made[-1]))

    weights = (good / "model.safetensors").read_bytes()
    (copied("cut model") / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    pickled = copied("pickled model")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    (copied("no weights") / "model.safetensors").unlink()
    (copied("other config") / "config.json").write_text("{}")
    (copied("bad config") / "config.json").write_bytes(b"\xff{")
    (copied("no tokenizer") / "tokenizer.json").write_text("[]")
    own = json.loads((good / "config.json").read_text())
    for name, changes in {"narrow": {"hidden_size": 8}, "short": {"vocab_size": 4}, "odd": {"model_type": "x"}}.items():
        (copied(f"{name} model") / "config.json").write_text(json.dumps(own | changes))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (copied(f"no {file}") / file).unlink()
    mute = copied("mute model")
    for file in mute.glob("*token*"):
        file.unlink()
    tensors = load_file(good / "model.safetensors")
    for name, value in {"nan": float("nan"), "inf": float("inf"), "zero": 0.0, "huge": 1e30}.items():
        changed = {key: torch.full_like(tensor, value) for key, tensor in tensors.items()}
        save_file(changed, copied(f"{name} model") / "model.safetensors", metadata={"format": "pt"})
    few = {key: tensor[:4].clone() if "embed" in key or "lm_head" in key else tensor for key, tensor in tensors.items()}
    short = copied("few words")
    save_file(few, short / "model.safetensors", metadata={"format": "pt"})
    (short / "config.json").write_text(json.dumps(own | {"vocab_size": 4}))
    return made


def _methods(folder: Path, model: str) -> list[str]:
    torch.manual_seed(0)
    width = models.hugging_face("llama").config.hidden_size
    acts = ot.ContrastiveActivations(torch.randn(8, width), torch.randn(8, width), layer=1, model_name=model)
    for name in ("CAA", "ITI", "ODESteer", "MiMiC"):
        ot.save(getattr(ot, name).fit(acts), folder / name)
    return [str(folder / name) for name in ("CAA", "ITI", "ODESteer", "MiMiC")]


def _hostile_methods(folder: Path) -> list[str]:
    """Saved methods of which one field, or one tensor, is of another kind."""
    made, values = [], [5, "x", None, [], {}, -1, True, 1e308, float("nan"), "blocks.x.hook_resid_post", 1e-300]

    def copied(good: Path) -> Path:
        made.append(str(folder / f"hostile{len(made)}"))
        return Path(shutil.copytree(good, made[-1]))

    def places(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, item in node.items() if isinstance(node, dict) else ():
            yield (*path, key)
            yield from places(item, (*path, key))

    for name in ("CAA", "ODESteer", "MiMiC"):
        tree = json.loads((folder / name / "config.json").read_text())["tree"]
        for path in places(tree):
            for value in values:
                changed = node = json.loads(json.dumps(tree))
                for key in path[:-1]:
                    node = node[key]
                node[path[-1]] = value
                resealed(copied(folder / name), lambda _, changed=changed: changed)
        tensors = load_file(tensors_of(folder / name))
        for key, tensor in tensors.items():
            wrong = (
                tensor[:0],
                tensor[None],
                tensor.flatten()[0],
                tensor * float("nan"),
                tensor.double(),
                tensor * 1e30,
            )
            for other in (*wrong, tensor.bool(), tensor.half()):
                place = copied(folder / name)
                save_file(tensors | {key: other.clone()}, tensors_of(place))
                resealed(place)
        data = tensors_of(folder / name).read_bytes()
        for length in (0, 4, 20, len(data) - 1):
            place = copied(folder / name)
            tensors_of(place).write_bytes(data[:length])
            resealed(place)
    return made
