"""Loads the model of a command, or raises an error that says why it cannot be loaded."""

from pathlib import Path
from typing import Any

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.backends.gguf_files import check_gguf, is_gguf
from odesteer_tl.cli.model_options import DEFAULTS, device_and_dtype


def check_model(name: str) -> None:
    """Raise ValueError if `name` is a file but no GGUF, a folder without a model, or a path that does not exist. A name
    that is not a path is checked by the library when it loads the model."""
    path = Path(name)
    if name == EMBEDDED:
        return
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"--model {name} is a folder without a config.json: give a folder that holds a model.")
    elif is_gguf(name):
        check_gguf(path)
    elif path.exists() or path.is_absolute() or name.startswith((".", "~")):
        raise ValueError(
            f"--model {name} is no folder: give one that holds a model, a .gguf file or a Hugging Face name."
        )


def is_plain_demo(name: str) -> bool:
    """Whether `name` is the embedded model as it is loaded by itself, on the CPU and in float32."""
    return name == EMBEDDED and device_and_dtype() == DEFAULTS


def device_and_torch_dtype() -> dict[str, Any]:
    """--device and --dtype as arguments of `ot.load_model`."""
    import torch

    device, dtype = device_and_dtype()
    return {"device": device, "dtype": getattr(torch, dtype)}


def chosen_model(name: str) -> Any:
    """The model called `name` as a TransformerBridge, on --device and in --dtype. Raises ValueError if it cannot be
    loaded."""
    import odesteer_tl as ot

    check_model(name)
    if is_plain_demo(name):
        return ot.load_demo().model
    where = device_and_torch_dtype()
    try:
        return ot.load_demo(**where).model if name == EMBEDDED else ot.load_model(name, **where)
    except MemoryError:
        raise
    except Exception as error:  # many types: weights may be truncated, pickled, or of another shape
        if "can't allocate memory" in str(error):
            raise
        reason = str(error)
        if "ignore_mismatched_sizes" in reason:  # transformers prints the details elsewhere
            reason = "the sizes in its config.json are not those of its weights."
        raise ValueError(f"--model {name} cannot be loaded ({type(error).__name__}): {reason}") from error
