"""Progress is shown to somebody who sees it, by one switch, and never as a line per refresh."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

WORK = """
import torch
import odesteer_tl as ot
from odesteer_tl.progress import bar

for _ in bar(range(200), said="Counting", progress={progress}):
    pass
acts = ot.ContrastiveActivations(torch.randn(64, 16), torch.randn(64, 16) + 1, layer=1)
ot.REControl.fit(acts, epochs=30)
"""


def run(progress, switch=None, terminal=False):
    """What a process says on standard error: to a file, or to a terminal."""
    own = {name: value for name, value in os.environ.items() if name != "ODESTEER_TL_PROGRESS"}
    own |= {} if switch is None else {"ODESTEER_TL_PROGRESS": switch}
    command = [sys.executable, "-c", WORK.format(progress=progress)]
    if not terminal:
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a new one has no columns
    process = subprocess.Popen(command, env=own, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait(300) == 0
    return said.decode(errors="replace")


@pytest.mark.parametrize("progress", [None, False])
def test_without_a_terminal_nothing_is_said(progress):
    assert run(progress) == ""


@pytest.mark.parametrize("progress, switch", [(True, None), (None, "1")])
def test_who_asks_without_a_terminal_gets_a_line_per_stage(progress, switch):
    lines = run(progress, switch).splitlines()
    assert lines[0] == "Counting" and len(lines) <= 2 and not any("\r" in line for line in lines)


def test_a_terminal_shows_a_bar_unless_it_is_switched_off():
    assert "Counting" in (shown := run(True, terminal=True)) and "\r" in shown
    assert "Counting" not in run(True, "0", terminal=True) and "Counting" not in run(False, terminal=True)
