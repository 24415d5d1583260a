"""Whether a method, a site or a batch fits a model."""

import math
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

from odesteer_tl._shapes import TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.model_info import layers_of, modules_of, processing_of, width_of
from odesteer_tl.backends.owners import check_free
from odesteer_tl.backends.upstream_names import need_parameter
from odesteer_tl.data.activations import Origin
from odesteer_tl.portable.decoder_blocks import check_biases
from odesteer_tl.portable.sites import Site


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The number as an int, also one of numpy's or torch's. Raises ValueError for anything else, and below `least`."""
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} is a whole number of at least {least}, got {value!r}.")
    return number


def real_number(name: str, value: Any, least: float = 0.0) -> float:
    """The number as a float, also one of numpy's or torch's. Raises ValueError for anything else, below `least`, and
    where it is not finite."""
    number = None if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__") else float(value)
    if number is None or not least <= number < math.inf:
        raise ValueError(f"{name} is a finite number of at least {least:g}, got {value!r}.")
    return number


def check_place(model: Any, remote: bool | str, blocks: Any) -> None:
    """Raises ValueError for `remote` or `blocks` with a model that runs where it is, or names its own blocks;
    RuntimeError for a model that another thread or task is steering."""
    if not remote:
        check_free(model)
    backend_of(model).check_place(model, remote, blocks)


def check_layer(model: Any, layer: int, blocks: Any = None) -> None:
    """Raises ValueError for a layer that the model has not."""
    count = layers_of(model, blocks)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise ValueError(f"layer is a block index, an integer from 0 to {count - 1}, got {layer!r}.")
    if not 0 <= layer < count:
        raise ValueError(f"layer={layer!r} does not exist: this model has layers 0 to {count - 1}, counted from 0.")


def check_there(model: Any, sites: Iterable[Site], blocks: Any = None) -> None:
    """Raises ValueError for a site that the model has not, or that cannot be read or written in its library."""
    sites = list(sites)
    for site in sites:
        check_layer(model, site.layer, blocks)
    backend_of(model).check_sites(model, sites, blocks)


def check_fit(model: Any, origin: Origin, sites: Sequence[Site], blocks: Any = None) -> None:
    """Raises ValueError for a method fitted at another width or weight processing, or sites that the model has not."""
    width, here = width_of(model), processing_of(model)
    check_there(model, sites, blocks)
    own = modules_of(model, blocks)
    for site in sites:
        check_biases(own[site.layer], site.name, origin.processing, here)
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
        need_parameter(backend_of(model).root(model), "attention_mask", "which tells pads")
