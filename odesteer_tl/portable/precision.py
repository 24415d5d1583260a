"""The width of activations, the dtype in which methods compute, and the cast back to the activations' dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_width(a: Tensor, d_model: int | None) -> None:
    """Raise ValueError where a method fitted at `d_model` meets activations of another width."""
    if d_model is not None and a.shape[-1] != d_model:
        raise ValueError(
            f"This method was fitted at d_model {d_model}, got {tuple(a.shape)}: give activations [..., {d_model}], or "
            "fit on this model."
        )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of computation for activations of `dtype`: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


class _AsItIs:
    """A block that changes nothing. (A server has no contextlib.)"""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def in_full(device: torch.device) -> Any:
    """Inside, matrix products are computed in the dtype of their factors, even if the user's torch.autocast would
    compute them in 16 bits."""
    kind = device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if cast else _AsItIs()


def cast_back(x: Tensor, dtype: torch.dtype, far: bool = False) -> Tensor:
    """x in `dtype`. In float16, or with `far`, entries beyond the largest number are clamped to it."""
    if dtype != torch.float16 and not far:
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)
