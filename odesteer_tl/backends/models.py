"""What a model says of itself, in one voice for both libraries, and whether a method fits it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from odesteer_tl.activations import Origin, Processing, processing_seen_in
from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.backends.nnsight.blocks import blocks_of
from odesteer_tl.backends.nnsight.sites import check_biases, check_site
from odesteer_tl.edits import Site


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
        return TransformerBridge.boot_transformers(name, device=device, dtype=dtype)
    finally:
        if shown:
            logging.enable_progress_bar()


def load_weights(model: Any) -> None:
    """An nnsight model may have been made without weights: now it needs them. No other model is changed."""
    if kind_of(model) == "nnsight" and not getattr(model, "dispatched", True):
        model.dispatch()


def device_of(model: Any) -> torch.device:
    """Where the model takes its tokens."""
    return next(model.parameters()).device


def dtype_of(model: Any) -> torch.dtype:
    """What the model computes in."""
    return next(model.parameters()).dtype


def pad_id_of(model: Any) -> int | None:
    """The token that pads; None without a tokenizer, or where it has none."""
    return getattr(tokenizer_of(model), "pad_token_id", None)


def tokenizer_of(model: Any) -> Any:
    """The model's tokenizer, or None."""
    return getattr(model, "tokenizer", None)


def eos_ids_of(model: Any) -> list[int]:
    """The tokens that end a text: a model may know several, such as the end of a chat turn; else the tokenizer's."""
    if kind_of(model) == "nnsight":
        own = getattr(model._module, "generation_config", None)
        found = getattr(own, "eos_token_id", None)
        found = getattr(_config(model), "eos_token_id", None) if found is None else found
    else:
        found = getattr(model.cfg, "eos_token_id", None)
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


def layers_of(model: Any, blocks: Any = None) -> int:
    """How many blocks the model has. Raises ValueError as `blocks_of` does."""
    return len(blocks_of(model, blocks)) if kind_of(model) == "nnsight" else model.cfg.n_layers


def layers_chosen(model: Any, layers: Iterable[int] | None, blocks: Any = None) -> list[int]:
    """The layers given, in their order, or all for None. Raises ValueError for one number in place of a list."""
    if isinstance(layers, int):
        raise ValueError(f"layers is a list of block indices, such as [{layers}], or None for all; got {layers}.")
    return list(range(layers_of(model, blocks)) if layers is None else layers)


def processing_of(model: Any) -> Processing:
    """What was done to the weights, told by the weights: see `Processing`. nnsight holds them as they are.

    "centred" where the rows of the embedding have mean zero over d_model, as center_writing_weights makes them;
    "folded" where the norms have lost their scale; "raw" otherwise.
    """
    if kind_of(model) == "nnsight":
        return "raw"
    if processing_seen_in(model.W_E[:256].detach().cpu()) == "centred":
        return "centred"
    norm = getattr(model.blocks[0], "ln1", None)
    scale = getattr(norm, "w", None)
    folded = norm is not None and (scale is None or bool((scale.detach() == 1).all()))
    return "folded" if folded else "raw"


def check_place(model: Any, remote: bool | str, blocks: Any) -> None:
    """Raises ValueError for `remote` or `blocks` with a TransformerLens model, which runs where it is and names its
    own blocks."""
    if kind_of(model) == "nnsight":
        return
    if remote:
        raise ValueError("remote=True needs an nnsight model; a TransformerLens model runs on this machine.")
    if blocks is not None:
        raise ValueError("blocks= is for nnsight models; TransformerLens knows the blocks of its own.")


def check_layer(model: Any, layer: int, blocks: Any = None) -> None:
    """Raises ValueError for a layer that the model has not."""
    count = layers_of(model, blocks)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise ValueError(f"layer is a block index, an integer from 0 to {count - 1}, got {layer!r}.")
    if not 0 <= layer < count:
        raise ValueError(f"layer={layer!r} does not exist: this model has layers 0 to {count - 1}, counted from 0.")


def check_there(model: Any, sites: Iterable[Site], blocks: Any = None) -> None:
    """Raises ValueError for a site that the model has not, or that cannot be read or written in its library."""
    hooks = None if kind_of(model) == "nnsight" else model.hook_dict  # which a bridge gathers each time it is asked
    for site in sites:
        check_layer(model, site.layer, blocks)
        if hooks is None:
            check_site(blocks_of(model, blocks)[site.layer], site.name)
        elif site.hook_name not in hooks:
            raise ValueError(f"This model has no hook {site.hook_name}; model.hook_dict lists those it has.")


def check_fit(model: Any, origin: Origin, sites: Sequence[Site], blocks: Any = None) -> None:
    """Raises ValueError for a method fitted at another width or weight processing, or sites that the model has not."""
    width, here = width_of(model), processing_of(model)
    check_there(model, sites, blocks)
    own = blocks_of(model, blocks) if kind_of(model) == "nnsight" else model.blocks
    for site in sites:
        block = own[site.layer]
        check_biases(getattr(block, "_module", block), site.name, origin.processing, here)
        if width is not None and origin.d_model not in (None, width) and site.name != "z":
            raise ValueError(
                f"The method was fitted at d_model {origin.d_model}, this model has {width}: "
                "fit it on activations of this model."
            )
    if origin.processing != "unknown" and (here == "centred") != (origin.processing == "centred"):
        raise ValueError(
            f"The method was fitted on {origin.processing} weights, this model has {here} ones, so that its residual "
            "stream differs: collect again on this model, or load it with the same processing (fold_ln, "
            "center_writing_weights, enable_compatibility_mode)."
        )


def _config(model: Any) -> Any:
    """The Hugging Face configuration of the text part of an nnsight model, or None."""
    config = getattr(model._module, "config", None)
    inner = getattr(config, "get_text_config", None)
    return inner() if callable(inner) else config


def _said(model: Any, here: str, there: str) -> int | None:
    """A number under its TransformerLens and its Hugging Face name."""
    return getattr(_config(model), there, None) if kind_of(model) == "nnsight" else getattr(model.cfg, here)
