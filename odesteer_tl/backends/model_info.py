"""Model properties (width, layers, dtype, device, tokenizer) for any library."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from odesteer_tl.backends.base import Library, backend_of, loader_of
from odesteer_tl.backends.offloaded_weights import device_under
from odesteer_tl.backends.upstream_names import made_by
from odesteer_tl.data.activations import Processing


def load_model(
    name_or_folder: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    library: Library = "transformer_lens",
) -> Any:
    """A TransformerBridge of a Hugging Face name, a local folder or a `.gguf` file, weights as they are (processing
    "raw"); the same as an nnsight model, whose weights are loaded when it first runs on this machine; or, with
    library="huggingface", the plain model, with its tokenizer as `model.tokenizer`.

    `dtype` None is float32. The numbers of a GGUF file are dequantised to it (`pip install 'odesteer_tl[gguf]'`), and
    its name cannot go to a server. A folder goes to a server by its path. Raises ValueError for another library or a
    GGUF file that cannot be read, and what transformers raises where there is no such model.
    """
    return loader_of(library)(str(name_or_folder), device, dtype or torch.float32)


def load_weights(model: Any) -> None:
    """An nnsight model may have been made without weights: now it needs them. No other model is changed."""
    backend_of(model).load_weights(model)


def device_of(model: Any) -> torch.device:
    """Where the model takes its tokens."""
    return device_under(model)


def dtype_of(model: Any) -> torch.dtype:
    """What the model computes in."""
    return next(model.parameters()).dtype


def pad_id_of(model: Any) -> int | None:
    """The token that pads; None without a tokenizer, or where it has none."""
    return getattr(tokenizer_of(model), "pad_token_id", None)


def tokenizer_of(model: Any) -> Any:
    """The model's tokenizer, or None. Raises ValueError where a library that holds one has renamed it."""
    return backend_of(model).tokenizer(model)


def eos_ids_of(model: Any) -> list[int]:
    """The tokens that end a text: a model may know several, such as the end of a chat turn; else the tokenizer's."""
    found = backend_of(model).eos_token_ids(model)
    if found is None:
        found = getattr(tokenizer_of(model), "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def prepends_bos(model: Any) -> bool:
    """Whether a text gets a BOS unless told otherwise: TransformerLens' setting, or what the tokenizer does."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    return backend_of(model).prepends_bos(model, tokenizer)


def model_name_of(model: Any) -> str:
    """The name that the library knows the model by; empty where it knows none."""
    return backend_of(model).model_name(model)


def width_of(model: Any) -> int | None:
    """d_model; None where the configuration does not say."""
    return backend_of(model).size(model, "d_model")


def context_of(model: Any) -> int | None:
    """The longest text that the model holds, in tokens; None where nothing says."""
    return backend_of(model).size(model, "n_ctx")


def vocabulary_of(model: Any) -> int | None:
    """How many tokens the model can give; None where nothing says."""
    return backend_of(model).size(model, "d_vocab")


def layers_of(model: Any, blocks: Any = None) -> int:
    """How many decoder blocks the model has. Raises ValueError where they are not found."""
    return len(modules_of(model, blocks))


def layers_chosen(model: Any, layers: Iterable[int] | None, blocks: Any = None) -> list[int]:
    """The layers given, in their order, or all for None. Raises ValueError for one number in place of a list."""
    if isinstance(layers, int):
        raise ValueError(f"layers is a list of block indices, such as [{layers}], or None for all; got {layers}.")
    return list(range(layers_of(model, blocks)) if layers is None else layers)


def modules_of(model: Any, blocks: Any = None) -> Any:
    """The model's decoder blocks, as torch modules. Raises ValueError where they are not found."""
    return backend_of(model).decoder_blocks(model, blocks)


def stack_of(model: Any, blocks: Any = None) -> Any:
    """The torch module that runs the decoder blocks: the nearest one around their list that is called.

    Raises ValueError for blocks that are no part of the model.
    """
    own, root = modules_of(model, blocks), backend_of(model).root(model)
    path = next((path for path, module in root.named_modules() if module is own), None)
    path = next((at for at, each in root.named_modules() if own[0] in each.children()), None) if path is None else path
    if path is None:
        raise ValueError(
            f"The decoder blocks are no part of the {type(root).__name__} that the model wraps ({made_by(root)}), so "
            "that its passes cannot be followed."
        )
    while path:
        path = path.rpartition(".")[0]
        stack = root.get_submodule(path)
        if not isinstance(stack, (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)):
            return stack
    return root


def processing_of(model: Any) -> Processing:
    """What was done to the weights: see `Processing`. Only TransformerLens does anything."""
    return backend_of(model).processing(model)
