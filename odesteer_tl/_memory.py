"""Memory: whether a fit has room for what it holds at once, asked before anything is allocated."""

import os
from pathlib import Path

import torch

_GROUPS, _LIMITS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def room(device: torch.device) -> int | None:
    """Bytes of memory of a device, in use or not, or as many of them as a container or batch job may use; None where
    that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits()])


def _group_limits() -> list[int]:
    """The limits of this process's control group and of those around it: `memory.max` of version 2, where "max" is
    none, and `memory.limit_in_bytes` of version 1. Linux alone has them."""
    limits: list[int] = []
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return limits
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory") or "memory" in controllers.split(","):
            top, name = (_LIMITS, "memory.max") if not controllers else (_LIMITS / "memory", "memory.limit_in_bytes")
            inner = Path(group.lstrip("/"))  # a container sees its own group as the top
            for folder in (top / inner, *(top / each for each in inner.parents)):
                try:
                    limits.append(int((folder / name).read_text()))
                except (OSError, ValueError):  # not there, or "max"
                    continue
    return limits


def check_room(bytes_needed: int, device: torch.device, what: str, advice: str) -> None:
    """Raise ValueError, with `advice`, where `what` needs more bytes than the memory of `device` has in all."""
    there = room(device)
    if there is not None and bytes_needed > there:
        raise ValueError(f"{what} needs {bytes_needed:,} bytes of memory, and {device} has {there:,}: {advice}")
