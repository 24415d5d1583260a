"""Memory: checks before allocation that a fit has enough of it."""

import os
from pathlib import Path

import torch

_GROUPS, _LIMITS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def room(device: torch.device) -> int | None:
    """The total memory of a device in bytes, used or not, or the limit of a container or batch job if that is lower;
    None if it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits()])


def _group_limits() -> list[int]:
    """The memory limits of this process's control group and of its parents, on Linux: `memory.max` of version 2, where
    "max" is no limit, and `memory.limit_in_bytes` of version 1."""
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
            for folder in (top / inner, *(top / parent for parent in inner.parents)):
                try:
                    limits.append(int((folder / name).read_text()))
                except (OSError, ValueError):  # not there, or "max"
                    continue
    return limits


def check_room(bytes_needed: int, device: torch.device, what: str, advice: str) -> None:
    """Raise ValueError, with `advice`, if `what` needs more bytes than the total memory of `device`."""
    available = room(device)
    if available is not None and bytes_needed > available:
        raise ValueError(f"{what} needs {bytes_needed:,} bytes of memory, and {device} has {available:,}: {advice}")
