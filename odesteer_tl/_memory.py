"""Memory: whether a fit has room for what it holds at once, asked before anything is allocated."""

import os

import torch


def room(device: torch.device) -> int | None:
    """Bytes of memory of a device, in use or not; None where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_room(bytes_needed: int, device: torch.device, what: str, advice: str) -> None:
    """Raise ValueError, with `advice`, where `what` needs more bytes than the memory of `device` has in all."""
    there = room(device)
    if there is not None and bytes_needed > there:
        raise ValueError(f"{what} needs {bytes_needed:,} bytes of memory, and {device} has {there:,}: {advice}")
