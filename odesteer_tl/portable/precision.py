"""What activations may come in, and the dtypes in which they are computed and given back."""

from __future__ import annotations

import torch
from torch import Tensor


def check_width(a: Tensor, d_model: int | None) -> None:
    """Raise ValueError where a method fitted at `d_model` meets activations of another width."""
    if d_model is not None and a.shape[-1] != d_model:
        raise ValueError(f"This method was fitted at d_model {d_model}, got {tuple(a.shape)}.")


def working(dtype: torch.dtype) -> torch.dtype:
    """What is computed in for activations of `dtype`: float32, or float64 for those."""
    return torch.promote_types(dtype, torch.float32)


def given_back(x: Tensor, dtype: torch.dtype, far: bool = False) -> Tensor:
    """x in the dtype of the activations; entries beyond its largest number become that, in float16 or with `far`."""
    if dtype != torch.float16 and not far:
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)
