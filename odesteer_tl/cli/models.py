"""The model of a command, or in words why it cannot be loaded."""

from pathlib import Path
from typing import Any

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.backends.gguf_files import check_gguf, is_gguf


def check_model(name: str) -> None:
    """Raise ValueError where `name` is a file other than a GGUF, a folder that holds no model, or a path that leads
    nowhere; what a name without a path means, only the library knows."""
    place = Path(name)
    if name == EMBEDDED:
        return
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise ValueError(f"--model {name} is a folder without a config.json, so that it holds no model.")
    elif is_gguf(name):
        check_gguf(place)
    elif place.exists() or place.is_absolute() or name.startswith((".", "~")):
        raise ValueError(
            f"--model {name} is no folder: give one that holds a model, a .gguf file or a Hugging Face name."
        )


def chosen_model(name: str) -> Any:
    """The model called `name` as a TransformerBridge. Raises ValueError where it cannot be loaded."""
    import odesteer_tl as ot

    check_model(name)
    if name == EMBEDDED:
        return ot.load_demo().model
    try:
        return ot.load_model(name)
    except MemoryError:
        raise
    except Exception as error:  # of any kind: of weights that are cut off, pickled, or of another shape
        if "can't allocate memory" in str(error):
            raise
        said = str(error)
        if "ignore_mismatched_sizes" in said:  # with a report that is printed elsewhere
            said = "the sizes in its config.json are not those of its weights."
        raise ValueError(f"--model {name} cannot be loaded ({type(error).__name__}): {said}") from error
