"""GGUF files: transformers reads them into plain float models, which every library can wrap."""

from pathlib import Path
from typing import Any

import torch

from odesteer_tl.backends.transformers_settings import without_progress_bars

_MAGIC = b"GGUF"


def is_gguf(name: str) -> bool:
    """Whether a model's name is the name of a GGUF file."""
    return name.lower().endswith(".gguf")


def model_and_tokenizer(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The Hugging Face model of a GGUF file, its weights dequantised to `dtype`, and its tokenizer.

    Raises ValueError if there is no such file or it is no GGUF, if the package `gguf` is not installed, and if
    transformers cannot read its architecture, weights or tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers import __version__ as version

    file = Path(name)
    check_gguf(file)
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(**location, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(**location)
    except Exception as error:  # transformers and gguf raise many types for broken bytes
        raise ValueError(
            f"{name} cannot be read by transformers {version} ({type(error).__name__}: {str(error)[:300]}): the file "
            "may be damaged, or its architecture not supported. Try the Hugging Face folder that it was made from."
        ) from error
    return _plain(model), tokenizer


def check_gguf(file: Path) -> None:
    """Raise ValueError if there is no such file, it is no GGUF, or the package `gguf` is not installed."""
    if not file.is_file():
        raise ValueError(f"There is no file {file}.")
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{file} is no GGUF file: it does not begin with the letters GGUF.")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(f"To read {file.name}, install gguf: pip install 'odesteer_tl[gguf]'.") from error


def _plain(model: Any) -> Any:
    """The same weights in a model that is not marked as quantised; transformers does not save or move a quantised
    one."""
    if not getattr(model, "is_quantized", False):
        return model
    config = model.config
    del config.quantization_config
    plain = type(model)(config).to(model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain.eval()
