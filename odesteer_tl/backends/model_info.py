"""Model properties (width, layers, dtype, device, tokenizer) for any library."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from odesteer_tl.backends.base import Library, backend_of, loader_of
from odesteer_tl.backends.offloaded_weights import device_under
from odesteer_tl.backends.upstream_names import made_by
from odesteer_tl.data.origin import Processing


def load_model(
    name_or_folder: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    library: Library = "transformer_lens",
) -> Any:
    """Load a model from a Hugging Face name, a local folder or a `.gguf` file, with unprocessed ("raw") weights.

    `library`: "transformer_lens" gives a TransformerBridge; "nnsight" an nnsight model, whose weights are loaded when
    it first runs on this machine; "huggingface" the plain model, with its tokenizer as `model.tokenizer`.

    `dtype` None is float32. A GGUF file is dequantised to it (`pip install 'odesteer_tl[gguf]'`); a server cannot load
    it. A server loads a folder by its path. Raises ValueError for another library, for a GGUF file that cannot be read,
    and for a checkpoint that lacks weights, which would be random (of a name in nnsight, when it first runs here);
    raises the error of transformers if there is no such model.
    """
    return loader_of(library)(str(name_or_folder), device, dtype or torch.float32)


def load_weights(model: Any) -> None:
    """Load the weights of an nnsight model that was made without them. Other models are not changed."""
    backend_of(model).load_weights(model)


def device_of(model: Any) -> torch.device:
    """The device on which the model takes its tokens."""
    return device_under(model)


def dtype_of(model: Any) -> torch.dtype:
    """The dtype of the model's first parameter."""
    return next(model.parameters()).dtype


def pad_id_of(model: Any) -> int | None:
    """The id of the pad token; None without a tokenizer or a pad token."""
    return getattr(tokenizer_of(model), "pad_token_id", None)


def tokenizer_of(model: Any) -> Any:
    """The model's tokenizer, or None. Raises ValueError if the library has renamed the attribute."""
    return backend_of(model).tokenizer(model)


def eos_ids_of(model: Any) -> list[int]:
    """The tokens that end a text: those of the model's settings (which may include the end of a chat turn), else the
    tokenizer's."""
    eos = backend_of(model).eos_token_ids(model)
    if eos is None:
        eos = getattr(tokenizer_of(model), "eos_token_id", None)
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def prepends_bos(model: Any) -> bool:
    """Whether a text gets a BOS by default: by TransformerLens's setting, or as the tokenizer does."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    return backend_of(model).prepends_bos(model, tokenizer)


def model_name_of(model: Any) -> str:
    """The library's name for the model; empty if it has none."""
    return backend_of(model).model_name(model)


def width_of(model: Any) -> int | None:
    """d_model; None if the configuration does not have it."""
    return backend_of(model).size(model, "d_model")


def context_of(model: Any) -> int | None:
    """The context length in tokens; None if the configuration does not have it."""
    return backend_of(model).size(model, "n_ctx")


def vocabulary_of(model: Any) -> int | None:
    """The size of the vocabulary; None if the configuration does not have it."""
    return backend_of(model).size(model, "d_vocab")


def layers_of(model: Any, blocks: Any = None) -> int:
    """The number of decoder blocks. Raises ValueError if they are not found."""
    return len(modules_of(model, blocks))


def layers_chosen(model: Any, layers: Iterable[int] | None, blocks: Any = None) -> list[int]:
    """The given layers, in their order; all layers for None. Raises ValueError for one number instead of a list."""
    if isinstance(layers, int):
        raise ValueError(f"layers is a list of block indices, such as [{layers}], or None for all; got {layers}.")
    return list(range(layers_of(model, blocks)) if layers is None else layers)


def modules_of(model: Any, blocks: Any = None) -> Any:
    """The model's decoder blocks, as torch modules. Raises ValueError if they are not found."""
    return backend_of(model).decoder_blocks(model, blocks)


def stack_of(model: Any, blocks: Any = None) -> Any:
    """The torch module that runs the decoder blocks: the nearest module around their list that has a forward.

    Raises ValueError for blocks that are not a part of the model.
    """
    block_list, root = modules_of(model, blocks), backend_of(model).root(model)
    path = next((path for path, module in root.named_modules() if module is block_list), None)
    path = (
        next((path for path, module in root.named_modules() if block_list[0] in module.children()), None)
        if path is None
        else path
    )
    if path is None:
        raise ValueError(
            f"The decoder blocks are no part of the {type(root).__name__} that the model wraps ({made_by(root)}), so "
            "its passes cannot be followed: pass blocks= with a list of modules of this model."
        )
    while path:
        path = path.rpartition(".")[0]
        stack = root.get_submodule(path)
        if not isinstance(stack, (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)):
            return stack
    return root


def processing_of(model: Any) -> Processing:
    """The processing of the weights (see `Processing`). Only TransformerLens processes weights."""
    return backend_of(model).processing(model)


def weights_digest(model: Any) -> str:
    """Of some numbers of every parameter, on whichever device: it tells checkpoints of one name apart."""
    sha = hashlib.sha256()
    for one in model.parameters():
        flat = one.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)][:64]
        sha.update(f"{tuple(one.shape)} {one.dtype}".encode() + some.to("cpu", torch.float64).numpy().tobytes())
    return sha.hexdigest()[:16]
