"""Whether a method, a site or a batch fits a model."""

from collections.abc import Iterable, Sequence
from typing import Any

from odesteer_tl.activations import Origin
from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.backends.models import layers_of, processing_of, width_of
from odesteer_tl.backends.nnsight.blocks import blocks_of
from odesteer_tl.backends.nnsight.sites import check_biases, check_site
from odesteer_tl.backends.owners import check_free
from odesteer_tl.backends.upstream import need_parameter
from odesteer_tl.edits import Site
from odesteer_tl.shapes import TokenMask


def check_place(model: Any, remote: bool | str, blocks: Any) -> None:
    """Raises ValueError for `remote` or `blocks` with a TransformerLens model, which runs where it is and names its
    own blocks; RuntimeError for a model that another thread or task is steering."""
    if not remote:
        check_free(model)
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


def check_mask_taken(model: Any, mask: TokenMask) -> None:
    """Raises ValueError for a batch with pads where the model's forward takes no attention_mask by that name: it would
    swallow it and attend to the pads."""
    if not bool(mask.all()):
        inner = {"nnsight": "_module", "TransformerBridge": "original_model"}.get(kind_of(model))
        need_parameter(model if inner is None else getattr(model, inner), "attention_mask", "which tells pads")
