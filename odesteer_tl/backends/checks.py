"""Checks that a method, a site or a batch fits a model."""

import math
import warnings
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

from odesteer_tl._shapes import TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.model_info import layers_of, model_name_of, modules_of, processing_of, width_of
from odesteer_tl.backends.owners import check_free
from odesteer_tl.backends.upstream_names import need_parameter
from odesteer_tl.data.origin import Origin
from odesteer_tl.methods.calibrated import Calibrated, positions_name
from odesteer_tl.portable.decoder_blocks import check_biases
from odesteer_tl.portable.method_list import members_of
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
    """Raises ValueError for a `remote` that is neither a bool nor an address, and for a `remote` or `blocks` that the
    model's library does not support; RuntimeError for a model that another thread or task is steering."""
    if (remote is not None and not isinstance(remote, (bool, str))) or remote == "":
        raise ValueError(
            "remote is True, False, or the address of a server as text, such as "
            f'"https://api.ndif.us"; got {"an empty text" if remote == "" else type(remote).__name__}.'
        )
    if not remote:
        check_free(model)
    backend_of(model).check_place(model, remote, blocks)


def check_layer(model: Any, layer: int, blocks: Any = None) -> None:
    """Raises ValueError for a layer that the model does not have."""
    count = layers_of(model, blocks)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise ValueError(f"layer is a block index, an integer from 0 to {count - 1}, got {layer!r}.")
    if not 0 <= layer < count:
        raise ValueError(f"Layer {layer} does not exist: this model has layers 0 to {count - 1}, counted from 0.")


def check_sites(model: Any, sites: Iterable[Site], blocks: Any = None) -> None:
    """Raises ValueError for a site that the model does not have, or that its library cannot read and write."""
    sites = list(sites)
    for site in sites:
        check_layer(model, site.layer, blocks)
    backend_of(model).check_sites(model, sites, blocks)


def check_fit(model: Any, origin: Origin, sites: Sequence[Site], blocks: Any = None) -> None:
    """Raises ValueError for a method fitted at another width or weight processing, or at sites that the model does not
    have."""
    width, processing = width_of(model), processing_of(model)
    check_sites(model, sites, blocks)
    block_list = modules_of(model, blocks)
    for site in sites:
        check_biases(block_list[site.layer], site.name, origin.processing, processing)
        if width is not None and origin.d_model not in (None, width) and site.name != "z":
            raise ValueError(
                f"The method was fitted at d_model {origin.d_model}, this model has {width}: "
                "fit it on activations of this model."
            )
    if origin.processing != "unknown" and (processing == "centred") != (origin.processing == "centred"):
        raise ValueError(
            f"The method was fitted on {origin.processing} weights and this model has {processing} ones, so the "
            "residual streams differ: collect again on this model, or load it with the same processing (fold_ln, "
            "center_writing_weights, enable_compatibility_mode)."
        )


def warn_of_other_use(
    model: Any, method: Any, T: Any, relative_T: Any, positions: Any, layer: int | None, stacklevel: int = 3
) -> None:
    """Warn where a calibrated method uses the strength that it carries on another model, at another layer, or at other
    positions than it was calibrated for: the strength spends another KL there."""
    here = model_name_of(model)
    for calibrated, given in members_of(method, T, relative_T):
        if given is not None or not isinstance(calibrated, Calibrated):
            continue
        changes = []
        if here and calibrated.model_name and not _same_name(here, calibrated.model_name):
            changes.append(f"the model {calibrated.model_name}, and this is {here}")
        if layer not in (None, calibrated.layer):
            changes.append(f"layer {calibrated.layer}, and this is layer {layer}")
        if positions_name(positions) != calibrated.positions:
            changes.append(f"positions={calibrated.positions!r}, and these are {positions_name(positions)!r}")
        if changes:
            warnings.warn(
                f"This {type(calibrated.method).__name__} carries the strength that spends {calibrated.kl:g} nats for "
                f"{'; '.join(changes)}. Give a T, or type ot.calibrate(model, method, prompts) for this use.",
                stacklevel=stacklevel,
            )


def _same_name(one: str, other: str) -> bool:
    """Whether two names of models end alike: a model may be named by its place on the Hub or by a folder."""
    return one.rstrip("/").rpartition("/")[2].lower() == other.rstrip("/").rpartition("/")[2].lower()


def check_mask_taken(model: Any, mask: TokenMask) -> None:
    """Raises ValueError for a batch with pads if the model's forward has no argument `attention_mask`: it would ignore
    the mask and attend to the pads."""
    if not bool(mask.all()):
        need_parameter(backend_of(model).root(model), "attention_mask", "which marks the pads")


def check_groups(groups: Any, sides: tuple[int, int]) -> None:
    """Raises ValueError for another number of ids than of texts, per side."""
    given = tuple(len(ids) for ids in groups)
    if given != sides:
        raise ValueError(
            f"groups needs one id per text, {sides[0]} desired and {sides[1]} undesired; got "
            f"{' and '.join(map(str, given))}."
        )
