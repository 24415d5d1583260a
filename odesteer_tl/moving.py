"""Moving complete objects: the same frozen dataclass with its tensors on another device or in another float type."""

from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def moved(thing: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """`thing` with every tensor on `device` and every floating tensor in `dtype`; integer tensors keep their type.

    Walks dataclasses. A module that is elsewhere is copied before it moves, so that the user's own stays as it is; any
    other object is used as it is.
    """
    if isinstance(thing, Tensor):
        return thing.to(device=device, dtype=dtype if thing.is_floating_point() else None)
    if isinstance(thing, torch.nn.Module):
        numbers = [n for n in (*thing.parameters(), *thing.buffers()) if n.is_floating_point()]
        there = all(n.to(device=device, dtype=dtype) is n for n in numbers)
        return thing if there else deepcopy(thing).to(device=device, dtype=dtype)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: moved(getattr(thing, f.name), device, dtype) for f in fields(thing)})
    return thing
