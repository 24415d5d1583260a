"""What a TransformerLens model says of itself, and whether a method fits it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from odesteer_tl.activations import Origin, Processing, processing_seen_in
from odesteer_tl.edits import Site


def load_model(name_or_folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """A TransformerBridge of a Hugging Face name or local folder, weights as they are (processing "raw").

    `dtype` None is float32. Raises what transformers raises where there is no such model.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return TransformerBridge.boot_transformers(str(name_or_folder), device=device, dtype=dtype or torch.float32)
    finally:
        if shown:
            logging.enable_progress_bar()


def device_of(model: Any) -> torch.device:
    """Where the model takes its tokens."""
    return next(model.parameters()).device


def dtype_of(model: Any) -> torch.dtype:
    """What the model computes in."""
    return next(model.parameters()).dtype


def pad_id_of(model: Any) -> int | None:
    """The token that pads; None without a tokenizer, or where it has none."""
    tokenizer = getattr(model, "tokenizer", None)
    return None if tokenizer is None else tokenizer.pad_token_id


def eos_ids_of(model: Any) -> list[int]:
    """The tokens that end a text: a bridge may know several, such as the end of a chat turn; else the tokenizer's."""
    found = getattr(model.cfg, "eos_token_id", None)
    if found is None:
        found = getattr(getattr(model, "tokenizer", None), "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def model_name_of(model: Any) -> str:
    """The name that TransformerLens knows the model by; empty where it knows none."""
    return str(getattr(model.cfg, "model_name", "") or "")


def processing_of(model: Any) -> Processing:
    """What was done to the weights, told by the weights: see `Processing`.

    "centred" where the rows of the embedding have mean zero over d_model, as center_writing_weights makes them;
    "folded" where the norms have lost their scale; "raw" otherwise.
    """
    if processing_seen_in(model.W_E[:256].detach().cpu()) == "centred":
        return "centred"
    norm = getattr(model.blocks[0], "ln1", None)
    scale = getattr(norm, "w", None)
    folded = norm is not None and (scale is None or bool((scale.detach() == 1).all()))
    return "folded" if folded else "raw"


def check_local(remote: bool) -> None:
    """Raises ValueError for remote=True: TransformerLens models run where they are."""
    if remote:
        raise ValueError("remote=True needs an nnsight model; a TransformerLens model runs on this machine.")


def check_layer(model: Any, layer: int) -> None:
    """Raises ValueError for a layer that the model has not."""
    if not isinstance(layer, int) or not 0 <= layer < model.cfg.n_layers:
        raise ValueError(
            f"layer={layer!r} does not exist: this model has layers 0 to {model.cfg.n_layers - 1}, counted from 0."
        )


def check_fit(model: Any, origin: Origin, sites: Iterable[Site]) -> None:
    """Raises ValueError for a method fitted at another width or weight processing, or sites that the model has not."""
    for site in sites:
        check_layer(model, site.layer)
        if site.hook_name not in model.hook_dict:
            raise ValueError(f"This model has no hook {site.hook_name}; model.hook_dict lists those it has.")
        if origin.d_model not in (None, model.cfg.d_model) and site.name != "z":
            raise ValueError(
                f"The method was fitted at d_model {origin.d_model}, this model has {model.cfg.d_model}: "
                "fit it on activations of this model."
            )
    here = processing_of(model)
    if origin.processing != "unknown" and (here == "centred") != (origin.processing == "centred"):
        raise ValueError(
            f"The method was fitted on {origin.processing} weights, this model has {here} ones, so that its residual "
            "stream differs: collect again on this model, or load it with the same processing (fold_ln, "
            "center_writing_weights, enable_compatibility_mode)."
        )
