"""Strength: what T and relative_T mean, and the checks of them, of the width and of the site.

Local and remote methods share these checks and errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.integrate import norm, per_activation

SITES = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""The sites of a block, in the order in which a block comes to them."""

LARGEST = torch.finfo(torch.float64).max


def place_of(site: Any) -> tuple[int, int]:
    """Where a site comes in a forward pass, to sort by: its layer, and its number within the block."""
    return site.layer, SITES.index(site.name)


def site_name(hook_name: str | None) -> str:
    """The site that a hook of TransformerLens is named after: "z" of "blocks.6.attn.hook_z"; None: "resid_post".

    Raises ValueError for a hook at which nothing is steered.
    """
    name = "resid_post" if hook_name is None else hook_name.rpartition("hook_")[2]
    if name not in SITES:
        raise ValueError(f"Methods act at {', '.join(SITES)}; this one was fitted at {hook_name}.")
    return name


def pairs_of(method: Any, T: Any, relative_T: Any, layer: Any = None) -> list[Any]:
    """Methods with their T, in the order in which they act; one that is several (`Layers`) as its parts, with its T.

    Raises ValueError for lists that are no such pairs, for what is no fitted method, and for a `layer` where a
    method is several.
    """
    if not isinstance(method, Sequence):
        check_method(method)
        if not hasattr(method, "each_with"):
            return [(method, T)]
        check_no_layer(layer)
        return [pair for part, strength in method.each_with(T) for pair in pairs_of(part, strength, relative_T)]
    if T is not None or relative_T is not None or not method:
        raise ValueError("A list of methods carries its strengths: [(method_a, 5.0), (method_b, 2.0)], and no T.")
    if any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in method):
        raise ValueError("A list of methods holds pairs: [(method_a, 5.0), (method_b, 2.0)].")
    return [pair for each, strength in method for pair in pairs_of(each, strength, None, layer)]


def check_method(method: Any) -> None:
    """Raise ValueError for a class, a barrier or whatever else is no fitted method."""
    if isinstance(method, type):
        name = method.__name__
        raise ValueError(f"{name} is a class, not a fitted method: fit one, {name}.fit(acts), and pass that.")
    if not callable(getattr(method, "edits", None)):
        name = type(method).__name__
        hint = ": ot.GradientFlow(barrier, layer=…) steers by it" if callable(getattr(method, "value", None)) else ""
        raise ValueError(f"A {name} is no fitted method, such as ot.ODESteer.fit(acts){hint}.")


def absolute(T: float | int | Tensor | None, relative_T: float | int | Tensor | None, x: Tensor) -> Any:
    """T, or relative_T·‖x‖ for each activation."""
    return T if relative_T is None else (per_activation(relative_T, x) * norm(x)).squeeze(-1)


def of_rows(strength: float | int | Tensor | None, state: Any) -> float | int | Tensor | None:
    """The strength of each chosen token, where a tensor holds one per batch row and `state.rows`, which is not asked
    for otherwise, says whose each token is."""
    if not isinstance(strength, Tensor) or strength.ndim == 0:
        return strength
    return strength.to(state.rows.device, non_blocking=True)[state.rows]


def check_strength(T: Any, relative_T: Any, dtype: torch.dtype | None = None, limits: Any = None) -> None:
    """Raise ValueError for both or neither of T and relative_T, for one that is no number or not finite, and for one
    that does not fit `dtype` or `limits`, where those are known."""
    if (T is None) == (relative_T is None):
        raise ValueError(f"Give either T or relative_T, got T={T}, relative_T={relative_T}.")
    strength = relative_T if T is None else T
    if not isinstance(strength, (int, float, Tensor)):
        raise ValueError(f"T is a number or a tensor, one value per row; got a {type(strength).__name__}.")
    whole = torch.isfinite(strength).all() if isinstance(strength, Tensor) else abs(strength) <= LARGEST  # no huge int
    if not whole:
        raise ValueError(f"T and relative_T must be finite, got {strength}.")
    if dtype is not None:
        check_fits(size_of(T, relative_T), dtype)
    if limits is not None:
        said, least, most = limits
        if T is None or not torch.as_tensor((least <= T) & (T <= most)).all():
            raise ValueError(f"{said}; got T={T}, relative_T={relative_T}.")


def size_of(T: float | int | Tensor | None, relative_T: float | int | Tensor | None) -> float:
    """The largest |T|, or |relative_T|, as a number of the host's."""
    strength = relative_T if T is None else T
    if isinstance(strength, Tensor):
        return float(strength.detach().abs().max()) if strength.numel() else 0.0
    return abs(float(strength or 0))


def check_fits(size: float, dtype: torch.dtype) -> None:
    """Raise ValueError for a T beyond the largest number of `dtype`, or the root of that of what is computed in, as
    lengths are squared."""
    if size <= 65504:  # which any float type holds
        return
    largest = min(torch.finfo(dtype).max, torch.finfo(working(dtype)).max ** 0.5)
    if size > largest:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"T = {size:g} does not fit {name} (largest {largest:.5g}): give a smaller one.")


def working(dtype: torch.dtype) -> torch.dtype:
    """What is computed in for activations of `dtype`: float32, or float64 for those."""
    return torch.promote_types(dtype, torch.float32)


def given_back(x: Tensor, dtype: torch.dtype, far: bool = False) -> Tensor:
    """x in the dtype of the activations; entries beyond its largest number become that, in float16 or with `far`."""
    if dtype != torch.float16 and not far:
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


def goes_far(T: float | int | Tensor | None) -> bool:
    """Whether T may take activations beyond any float type: where a tensor, or ‖a‖, decides it."""
    return isinstance(T, Tensor) or T is None or abs(T) > 65504


def check_width(a: Tensor, d_model: int | None) -> None:
    """Raise ValueError where a method fitted at `d_model` meets activations of another width."""
    if d_model is not None and a.shape[-1] != d_model:
        raise ValueError(f"This method was fitted at d_model {d_model}, got {tuple(a.shape)}.")


def check_index(layer: int) -> None:
    """Raise ValueError for a layer that is no integer, or below 0."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise ValueError(f"Layers are block indices counted from 0, got {layer!r}.")


def check_no_layer(layer: int | None) -> None:
    """Raise ValueError where one layer is given to a method that acts at several."""
    if layer is not None:
        raise ValueError(
            f"Layers act each part at its own layer, and layer={layer} would put them all at one: leave layer= out, or "
            "steer by one part, method.parts[i]."
        )


def layer_of(fitted: int | None, given: int | None) -> int:
    """The layer given, or else the one fitted. Raises ValueError where neither is known."""
    layer = fitted if given is None else given
    if layer is None:
        raise ValueError("This method was fitted without a layer: pass layer=, for example layer=6.")
    return layer
