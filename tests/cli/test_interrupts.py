"""Ctrl-C at any moment of a command: no traceback, and a program that merely imports the package keeps its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from odesteer_tl.startup.interrupts import is_command, raised_at_work

ROOT = Path(__file__).parents[2]
INTERRUPTED_IMPORT = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"


@pytest.fixture
def started(tmp_path):
    """Runs Python where `import torch` meets a Ctrl-C."""
    (tmp_path / "torch.py").write_text(INTERRUPTED_IMPORT)
    (tmp_path / "odesteer-tl").write_text("from odesteer_tl.cli import app\napp()\n")
    (tmp_path / "other.py").write_text("import odesteer_tl\n")

    def run(*words):
        paths = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )

    return run


@pytest.mark.parametrize("words", [["-m", "odesteer_tl", "methods"], ["odesteer-tl", "methods"]])
def test_during_the_imports_a_command_ends_by_the_signal_and_says_nothing(words, started):
    done = started(*words)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("words", [["-m", "other"], ["other.py"], ["-c", "import odesteer_tl", "-m", "odesteer_tl"]])
def test_another_program_meets_the_interrupt_itself(words, started):
    assert "KeyboardInterrupt" in started(*words).stderr


def test_what_counts_as_a_command():
    assert is_command(["-m"], ["python", "-X", "dev", "-m", "odesteer_tl", "fit"])
    assert is_command(["/usr/bin/odesteer-tl", "fit"], ["python", "/usr/bin/odesteer-tl", "fit"])
    assert is_command(["C:\\x\\odesteer-tl.exe".replace("\\", "/")], [])
    for argv in ([], [""], ["-c"], ["-m"], ["pytest", "odesteer-tl"]):
        assert not is_command(argv, ["python", "-m", "pytest", "odesteer_tl"])


def test_at_work_it_raises_and_afterwards_it_is_as_before():
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler):
            signal.signal(signal.SIGINT, handler)
            with raised_at_work():
                assert (signal.getsignal(signal.SIGINT) is signal.SIG_IGN) == (handler is signal.SIG_IGN)
                if handler is not signal.SIG_IGN:
                    with pytest.raises(KeyboardInterrupt):
                        signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
