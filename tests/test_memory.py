"""How much memory a process may use: what the machine has, or less where a control group of Linux says so."""

import pytest
import torch

from odesteer_tl import _memory

CPU = torch.device("cpu")
UNLIMITED = "9223372036854771712"


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes the files that Linux shows: the process's groups, and the limits by their path."""

    def make(own, limits):
        (tmp_path / "own").write_text(own)
        for path, limit in limits.items():
            file = tmp_path / "all" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(limit + "\n")

    monkeypatch.setattr(_memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(_memory, "ALL_GROUPS", tmp_path / "all")
    return make


@pytest.mark.parametrize(
    ("own", "limits", "most"),
    [
        ("0::/job\n", {"job/memory.max": "5000"}, 5000),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "7000", "memory.max": "9000"}, 7000),
        ("0::/\n", {"memory.max": "5000"}, 5000),
        ("0::/../..\n", {"memory.max": "5000"}, 5000),
        ("0::/not/seen/here\n", {"memory.max": "5000"}, 5000),
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "5000"}, 5000),
        ("3:cpu,memory:/a/b\n", {"memory/a/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/a:b\n", {"memory/a:b/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "5000"}, 5000),
    ],
)
def test_a_limit_of_any_group_above_the_process_counts(own, limits, most, groups):
    groups(own, limits)
    assert _memory.room(CPU) == most
    with pytest.raises(ValueError, match=rf"This needs 10,000 bytes of memory, and cpu has {most:,}: less\."):
        _memory.check_room(10_000, CPU, "This", "less.")
    _memory.check_room(most, CPU, "This", "never said.")


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        ("0::/job\n", {"job/memory.max": "max"}),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": UNLIMITED}),
        ("0::/job\n", {"other/memory.max": "5000"}),
        ("5:memoryless:/job\n", {"memory/job/memory.limit_in_bytes": "5000", "job/memory.max": "5000"}),
        ("rubbish\n\n::::\n", {"job/memory.max": "5000"}),
        ("0::/job\n", {"job/memory.max": "-1"}),
        ("", {}),
    ],
)
def test_without_one_the_machine_counts(own, limits, groups):
    groups("", {})
    machine = _memory.room(CPU)
    groups(own, limits)
    assert machine is not None and machine > 2**28 and _memory.room(CPU) == machine
