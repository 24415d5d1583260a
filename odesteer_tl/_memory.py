"""Memory: whether a fit has room for what it holds at once, asked before anything is allocated."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

OWN_GROUPS, ALL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where Linux says to which control groups a process belongs, and what each may use: containers and jobs of a cluster
may use less than the machine has, and are killed beyond it."""


def room(device: torch.device) -> int | None:
    """Bytes of memory of a device that this process may use, in use or not; None where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits()])


def check_room(bytes_needed: int, device: torch.device, what: str, advice: str) -> None:
    """Raise ValueError, with `advice`, where `what` needs more bytes than the memory of `device` has in all."""
    there = room(device)
    if there is not None and bytes_needed > there:
        raise ValueError(f"{what} needs {bytes_needed:,} bytes of memory, and {device} has {there:,}: {advice}")


def _limits() -> Iterator[int]:
    """The limits of the process's control groups, of version 1 and 2, and of all groups that those lie in."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if "memory" in controllers.split(","):
            top, name = ALL_GROUPS / "memory", "memory.limit_in_bytes"
        elif controllers == "":
            top, name = ALL_GROUPS, "memory.max"
        else:
            continue
        group = [part for part in path.split("/") if part not in ("", "..")]  # a container sees itself as the top
        for depth in range(len(group) + 1):
            try:
                limit = top.joinpath(*group[:depth], name).read_text().strip()
            except OSError:
                continue
            if limit.isdecimal():  # and not "max"
                yield int(limit)
