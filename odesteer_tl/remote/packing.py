"""Complete objects with their tensors on another device, in another float type, or packed for sending."""

from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.gradients import changed, leaves


def moved(thing: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """`thing` with every tensor on `device` and every floating tensor in `dtype`; integer tensors keep their type.

    Walks dataclasses, tuples and gradient functions. A module that is elsewhere is copied before it moves, so
    that the user's own stays as it is; any other object is used as it is.
    """
    return changed(thing, lambda leaf: _moved(leaf, device, dtype))


def _moved(thing: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    if isinstance(thing, Tensor):
        return thing.to(device=device, dtype=dtype if thing.is_floating_point() else None)
    if isinstance(thing, torch.nn.Module):
        there = all(
            (device is None or n.device == torch.empty(0, device=device).device)
            and (dtype is None or n.dtype == dtype or not n.is_floating_point())
            for n in (*thing.parameters(), *thing.buffers())
        )
        return thing if there else deepcopy(thing).to(device=device, dtype=dtype)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: moved(getattr(thing, f.name), device, dtype) for f in fields(thing)})
    return thing


def packed(thing: Any) -> Any:
    """The parts of a `PortableMethod` as they are sent: tensors on the CPU, without spare storage, in few bytes.

    A float tensor of small whole numbers (signs) becomes int8, int64 becomes int32 where it fits; `gradients.to_device`
    restores both. Objects of the user's are copied, so that what happens to them there does not happen here.
    Raises ValueError for one that cannot be copied.
    """
    return changed(thing, _packed)


def _packed(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        here, kind = thing.detach().cpu(), thing.dtype
        if thing.is_floating_point() and thing.numel() and bool((here == here.to(torch.int8)).all()):
            kind = torch.int8
        elif kind == torch.int64 and bool((here == here.to(torch.int32)).all()):
            kind = torch.int32
        return here.to(kind, copy=True, memory_format=torch.contiguous_format)
    try:
        copy = deepcopy(thing)
    except Exception as error:
        raise ValueError(f"{type(thing).__name__} cannot be copied, so it cannot be sent: {error}") from error
    if isinstance(copy, torch.nn.Module):
        return copy.cpu()
    for name, value in list(getattr(copy, "__dict__", {}).items()):
        if isinstance(value, (Tensor, torch.nn.Module)) and not isinstance(copy, type):
            copy.__dict__[name] = value.cpu()  # a server may have no other device
    return copy


def held(thing: Any) -> int:
    """Bytes of the tensors in the parts of a `PortableMethod`; objects of the user's do not count."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(thing) if isinstance(leaf, Tensor))
