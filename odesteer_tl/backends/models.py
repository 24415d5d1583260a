"""What a model says of itself, in one voice for both libraries, and whether a method fits it."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from odesteer_tl.activations import Processing, processing_seen_in
from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.backends.nnsight.blocks import blocks_of
from odesteer_tl.backends.transformer_lens.cache_names import rename_for_good
from odesteer_tl.backends.upstream import made_by, need
from odesteer_tl.backends.weights import device_under, numbers_of


def load_model(
    name_or_folder: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    library: Literal["transformer_lens", "nnsight"] = "transformer_lens",
) -> Any:
    """A TransformerBridge of a Hugging Face name or local folder, weights as they are (processing "raw"), or the same
    as an nnsight model, whose weights are loaded when it first runs on this machine.

    `dtype` None is float32. A folder goes to a server by its path. Raises ValueError for another library, and what
    transformers raises where there is no such model.
    """
    dtype, name = dtype or torch.float32, str(name_or_folder)
    if library == "nnsight":
        from nnsight import TransformersModel
        from nnsight.modeling import huggingface
        from transformers import AutoTokenizer

        if Path(name).is_dir():  # nnsight would ask the Hub by which name a server knows it
            huggingface._ID_CACHE[name] = name
        tokenizer = AutoTokenizer.from_pretrained(name)
        return TransformersModel(name, tokenizer=tokenizer, task="text-generation", dtype=dtype, device_map=device)
    if library != "transformer_lens":
        raise ValueError(f'library must be "transformer_lens" or "nnsight", got {library!r}.')
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return rename_for_good(TransformerBridge.boot_transformers(name, device=device, dtype=dtype))
    finally:
        if shown:
            logging.enable_progress_bar()


def load_weights(model: Any) -> None:
    """An nnsight model may have been made without weights: now it needs them. No other model is changed."""
    if kind_of(model) == "nnsight" and not getattr(model, "dispatched", True):
        model.dispatch()


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
    if kind_of(model) == "nnsight" and not hasattr(model, "repo_id"):  # a wrapper of any module, which has none
        return getattr(model, "tokenizer", None)
    return need(model, "tokenizer", "by whose pad token undeclared pads are noticed")


def eos_ids_of(model: Any) -> list[int]:
    """The tokens that end a text: a model may know several, such as the end of a chat turn; else the tokenizer's."""
    if kind_of(model) == "nnsight":
        own = getattr(model._module, "generation_config", None)
        found = getattr(own, "eos_token_id", None)
        found = getattr(_config(model), "eos_token_id", None) if found is None else found
    else:
        own = getattr(getattr(model, "original_model", None), "generation_config", None)
        found = getattr(own, "eos_token_id", None)
        found = getattr(model.cfg, "eos_token_id", None) if found is None else found
    if found is None:
        found = getattr(tokenizer_of(model), "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def prepends_bos(model: Any) -> bool:
    """Whether a text gets a BOS unless told otherwise: TransformerLens' setting, or what an nnsight tokenizer does."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    if kind_of(model) != "nnsight":
        return bool(model.cfg.default_prepend_bos)
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def model_name_of(model: Any) -> str:
    """The name that the library knows the model by; empty where it knows none."""
    if kind_of(model) == "nnsight":
        return str(getattr(model, "repo_id", None) or getattr(_config(model), "name_or_path", None) or "")
    return str(getattr(model.cfg, "model_name", "") or "")


def width_of(model: Any) -> int | None:
    """d_model; None where the configuration of an nnsight model does not say."""
    return _said(model, "d_model", "hidden_size")


def context_of(model: Any) -> int | None:
    """The longest text that the model holds, in tokens; None where nothing says."""
    return _said(model, "n_ctx", "max_position_embeddings")


def vocabulary_of(model: Any) -> int | None:
    """How many tokens the model can give; None where nothing says."""
    return _said(model, "d_vocab", "vocab_size")


def layers_of(model: Any, blocks: Any = None) -> int:
    """How many blocks the model has. Raises ValueError as `blocks_of` does."""
    return len(blocks_of(model, blocks)) if kind_of(model) == "nnsight" else model.cfg.n_layers


def layers_chosen(model: Any, layers: Iterable[int] | None, blocks: Any = None) -> list[int]:
    """The layers given, in their order, or all for None. Raises ValueError for one number in place of a list."""
    if isinstance(layers, int):
        raise ValueError(f"layers is a list of block indices, such as [{layers}], or None for all; got {layers}.")
    return list(range(layers_of(model, blocks)) if layers is None else layers)


def modules_of(model: Any, blocks: Any = None) -> Any:
    """The model's decoder blocks, as torch modules."""
    return blocks_of(model, blocks)._module if kind_of(model) == "nnsight" else model.blocks


def stack_of(model: Any, blocks: Any = None) -> Any:
    """The torch module that runs the decoder blocks: the nearest one around their list that is called.

    Raises ValueError for blocks that are no part of the model.
    """
    own = modules_of(model, blocks)
    root = model._module if kind_of(model) == "nnsight" else model.original_model
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
    """What was done to the weights, told by the weights: see `Processing`. nnsight holds them as they are.

    "centred" where the rows of the embedding have mean zero over d_model, as center_writing_weights makes them;
    "folded" where the norms have lost their scale; "raw" otherwise.
    """
    if kind_of(model) == "nnsight":
        return "raw"
    if processing_seen_in(numbers_of(model, model.W_E)[:256]) == "centred":
        return "centred"
    norm = getattr(model.blocks[0], "ln1", None)
    if norm is None:
        return "raw"
    if type(norm).__name__.endswith("Pre"):  # LayerNormPre, RMSNormPre: what is left of a norm whose scale is folded
        return "folded"
    scale = need(norm, "w", "by which folded weights are told from raw ones")
    return "folded" if bool((numbers_of(model, scale) == 1).all()) else "raw"


def _config(model: Any) -> Any:
    """The Hugging Face configuration of the text part of an nnsight model, or None."""
    config = getattr(model._module, "config", None)
    inner = getattr(config, "get_text_config", None)
    return inner() if callable(inner) else config


def _said(model: Any, here: str, there: str) -> int | None:
    """A number under its TransformerLens and its Hugging Face name. Warns where a configuration with the rotary
    positions that every length goes with does not say it, as where it was renamed."""
    if kind_of(model) != "nnsight":
        return getattr(model.cfg, here)
    config = _config(model)
    found = getattr(config, there, None)
    if found is None and getattr(config, "rope_parameters", None) is not None:
        warnings.warn(
            f"The configuration of this {made_by(model._module)} does not say its {there}: a method of another width, "
            "or a text longer than the model holds, is not noticed.",
            stacklevel=4,
        )
    return found
