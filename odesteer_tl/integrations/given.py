"""What a harness hands on from its command line: words, turned into a model, a method and positions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from odesteer_tl.assets.demo import EMBEDDED, load_demo
from odesteer_tl.backends.model_info import load_model
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.token_rules import checked
from odesteer_tl.save_load import load

DTYPES = ("float32", "bfloat16", "float16", "float64")


def model_given(pretrained: Any, library: str, device: str | None, dtype: str) -> Any:
    """The model of a Hugging Face name, a folder, a `.gguf` file or "embedded"; a model that is loaded already stays as
    it is. `device` None: the GPU where there is one. Raises ValueError for another library or dtype."""
    if not isinstance(pretrained, (str, Path)):
        return pretrained
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if str(pretrained) == EMBEDDED:
        return load_demo(device=device, library=library).model  # type: ignore[arg-type]
    return load_model(pretrained, device=device, dtype=getattr(torch, name), library=library)  # type: ignore[arg-type]


def method_given(method: Any) -> Any:
    """The fitted method of a folder that `ot.save` or `odesteer-tl fit` wrote; a method stays as it is."""
    return load(method) if isinstance(method, (str, Path)) else method


def positions_given(positions: Any) -> Positions:
    """A rule for positions; "2:5" is the slice from the third real token of a row to its fifth. Raises ValueError for
    anything else."""
    if isinstance(positions, str) and ":" in positions:
        try:
            positions = slice(*(int(edge) if edge.strip() else None for edge in positions.split(":")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'positions are "decoding", "generated", "prompt", "all", or a slice such as "0:5"; got {positions!r}.'
            ) from error
    return checked(positions)


def lines_given(file: str | Path) -> list[str]:
    """The lines of a text file that are not blank. Raises ValueError where it cannot be read, or has none."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts={file} cannot be read: give a text file, one prompt per line. {error}") from error
    if not (lines := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"prompts={file} is empty: it should hold one prompt per line.")
    return lines


def check_known(others: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ValueError for arguments that nobody reads."""
    if others := sorted(others):
        raise ValueError(f"{what} has no {', '.join(others)}; it has {', '.join(sorted(known))}.")
