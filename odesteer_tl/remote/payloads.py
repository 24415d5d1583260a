"""Copies of objects with their tensors on another device, in another float dtype, or packed for sending."""

from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.gradients import changed, leaves


def moved(thing: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """`thing` with every tensor on `device` and every floating-point tensor in `dtype`; integer tensors keep their
    dtype.

    This walks through dataclasses, tuples and gradient functions. A module is copied before it moves, so that the
    user's module does not change. Any other object is used as it is.
    """
    return changed(thing, lambda leaf: _moved(leaf, device, dtype))


def _moved(thing: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    if isinstance(thing, Tensor):
        return thing.to(device=device, dtype=dtype if thing.is_floating_point() else None)
    if isinstance(thing, torch.nn.Module):
        in_place = all(
            (device is None or tensor.device == torch.empty(0, device=device).device)
            and (dtype is None or tensor.dtype == dtype or not tensor.is_floating_point())
            for tensor in (*thing.parameters(), *thing.buffers())
        )
        return thing if in_place else deepcopy(thing).to(device=device, dtype=dtype)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: moved(getattr(thing, f.name), device, dtype) for f in fields(thing)})
    return thing


def packed(thing: Any) -> Any:
    """The parts of a `PortableMethod` for sending: tensors on the CPU, without unused storage, in few bytes.

    A float tensor of small whole numbers (signs) becomes int8, and int64 becomes int32 if it fits;
    `gradients.to_device` restores both. The user's objects are copied, so that the originals do not change. Raises
    ValueError for an object that cannot be copied.
    """
    return changed(thing, _packed)


def _packed(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        on_cpu, dtype = thing.detach().cpu(), thing.dtype
        if thing.is_floating_point() and thing.numel() and bool((on_cpu == on_cpu.to(torch.int8)).all()):
            dtype = torch.int8
        elif dtype == torch.int64 and bool((on_cpu == on_cpu.to(torch.int32)).all()):
            dtype = torch.int32
        return on_cpu.to(dtype, copy=True, memory_format=torch.contiguous_format)
    try:
        copy = deepcopy(thing)
    except Exception as error:
        raise ValueError(f"{type(thing).__name__} cannot be copied, so it cannot be sent: {error}") from error
    if isinstance(copy, torch.nn.Module):
        return copy.cpu()
    for name, value in list(getattr(copy, "__dict__", {}).items()):
        if isinstance(value, (Tensor, torch.nn.Module)) and not isinstance(copy, type):
            copy.__dict__[name] = value.cpu()  # the server may have no other device
    return copy


def tensor_bytes(thing: Any) -> int:
    """The bytes of the tensors in the parts of a `PortableMethod`, without the user's objects."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(thing) if isinstance(leaf, Tensor))
