"""How much memory a fit may use, where a container or a batch job limits it."""

import os

import pytest
import torch

from odesteer_tl import _memory

CPU = torch.device("cpu")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Sets what the kernel would say: lines of /proc/self/cgroup, and the limits in files under /sys/fs/cgroup."""
    monkeypatch.setattr(_memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(_memory, "_LIMITS", tmp_path / "limits")

    def said(lines, files):
        (tmp_path / "cgroup").write_text(lines)
        for name, text in files.items():
            (tmp_path / "limits" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "limits" / name).write_text(text)

    return said


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("0::/\n", {"memory.max": "5000\n"}),
        ("0::/jobs/mine\n", {"jobs/mine/memory.max": "max\n", "jobs/memory.max": "5000\n", "memory.max": "max\n"}),
        ("0::/jobs/mine\n", {"jobs/mine/memory.max": "5000\n", "jobs/memory.max": "9000\n"}),
        ("5:cpu,cpuacct:/\n4:memory:/docker/a1\n", {"memory/memory.limit_in_bytes": "5000\n"}),
        ("4:hugetlb,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "5000\n"}),
    ],
)
def test_the_smallest_limit_of_the_groups_is_the_room(groups, lines, files):
    groups(lines, files)
    assert _memory.room(CPU) == 5000
    with pytest.raises(ValueError, match=r"A fit needs 5,001 bytes of memory, and cpu has 5,000: do less"):
        _memory.check_room(5001, CPU, "A fit", "do less")
    _memory.check_room(5000, CPU, "A fit", "do less")


@pytest.mark.parametrize("lines", ["0::/\n", "5:cpu:/\n", "0::/gone\n"])
def test_without_a_limit_it_is_the_machines(groups, lines):
    groups(lines, {"memory.max": "max\n"})
    assert _memory.room(CPU) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_no_control_groups_are_no_limit(groups):
    assert _memory.room(CPU) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
