"""What activations may come in, and the dtypes in which they are computed and given back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


def check_width(a: Tensor, d_model: int | None) -> None:
    """Raise ValueError where a method fitted at `d_model` meets activations of another width."""
    if d_model is not None and a.shape[-1] != d_model:
        raise ValueError(f"This method was fitted at d_model {d_model}, got {tuple(a.shape)}.")


def working(dtype: torch.dtype) -> torch.dtype:
    """What is computed in for activations of `dtype`: float32, or float64 for those."""
    return torch.promote_types(dtype, torch.float32)


def in_full(device: torch.device) -> Any:
    """Inside, matrix products are computed in the dtype of their factors, also where the user's torch.autocast would
    compute them in 16 bits."""
    kind = device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if cast else nullcontext()


def given_back(x: Tensor, dtype: torch.dtype, far: bool = False) -> Tensor:
    """x in the dtype of the activations; entries beyond its largest number become that, in float16 or with `far`."""
    if dtype != torch.float16 and not far:
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)
