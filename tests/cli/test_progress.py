"""Progress is shown to somebody who sees it, by one switch, and never as a line per refresh."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

CASES = [(None, ""), (False, ""), (True, ""), (None, "1"), (True, "0")]
"""What is given as `progress=`, and what ODESTEER_TL_PROGRESS is."""
WORK = """
import os, sys
import torch
import odesteer_tl as ot
from odesteer_tl._progress import bar

acts = ot.ContrastiveActivations(torch.randn(64, 16), torch.randn(64, 16) + 1, layer=1)
for progress, switch in {cases}:
    os.environ["ODESTEER_TL_PROGRESS"] = switch
    for _ in bar(range(200), label="Counting", progress=progress):
        pass
    ot.REControl.fit(acts, epochs=2)
    print("<end>", end="", file=sys.stderr, flush=True)
"""


def said(terminal=False):
    """What each of CASES says on standard error: to a file, or to a terminal."""
    command = [sys.executable, "-c", WORK.format(cases=CASES)]
    if not terminal:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return dict(zip(CASES, done.stderr.split("<end>"), strict=False))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a new one has no columns
    process = subprocess.Popen(command, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(300) == 0
    return dict(zip(CASES, shown.decode(errors="replace").split("<end>"), strict=False))


def test_without_a_terminal_only_who_asks_gets_a_line_per_stage():
    shown = said()
    assert shown[None, ""] == shown[False, ""] == shown[True, "0"] == ""
    for asked in ((True, ""), (None, "1")):
        lines = shown[asked].splitlines()
        assert lines[0] == "Counting" and len(lines) <= 2 and not any("\r" in line for line in lines)


def test_a_terminal_shows_a_bar_unless_it_is_switched_off():
    shown = said(terminal=True)
    assert "Counting" in shown[True, ""] and "\r" in shown[True, ""]
    assert "Counting" not in shown[True, "0"] and "Counting" not in shown[False, ""]
