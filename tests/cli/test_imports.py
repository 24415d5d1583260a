"""A library that is missing or broken: one sentence with what to type, at the start of a command and in its midst."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROKEN = {
    "ImportError": "raise ImportError('libcudart.so.12: cannot open shared object file')",
    "OSError": "raise OSError('libtorch_cpu.so: wrong\\n  ELF class')",
    "AttributeError": "None.dtype",
    "ModuleNotFoundError": "import a_part_that_is_gone",
}


@pytest.fixture
def run(tmp_path):
    """Runs Python where a library is what it is told to be."""
    (tmp_path / "odesteer-tl").write_text("from odesteer_tl.cli import app\napp()\n")
    (tmp_path / "other.py").write_text("import odesteer_tl\n")

    def started(library, code, *words, **environment):
        (tmp_path / f"{library}.py").write_text(code + "\n")
        paths = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths} | environment,
        )  # fmt: skip

    return started


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("words", [["-m", "odesteer_tl", "methods"], ["odesteer-tl", "--help"]])
def test_a_command_says_which_library_and_what_to_type(run, words, kind):
    done = run("torch", BROKEN[kind], *words)
    library = "a_part_that_is_gone" if kind == "ModuleNotFoundError" else "torch"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {library} cannot be imported ({kind}: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"Install it anew: pip install --force-reinstall {library}\n")


def test_in_the_midst_of_a_command_too(run):
    done = run("matplotlib", BROKEN["ImportError"], "-m", "odesteer_tl", "demo", "--picture", "x.png")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Error: matplotlib cannot be imported (ImportError: libcudart" in done.stderr


def test_the_traceback_is_for_who_asks_and_for_other_programs(run):
    asked = run("torch", BROKEN["OSError"], "-m", "odesteer_tl", "methods", ODESTEER_TL_DEBUG="1")
    assert asked.returncode == 2 and "Traceback" in asked.stderr and "Error: torch cannot" in asked.stderr
    other = run("torch", BROKEN["OSError"], "other.py")
    assert other.returncode == 1 and "Traceback" in other.stderr and "cannot be imported" not in other.stderr


def test_a_fault_of_our_own_keeps_its_traceback(run):
    done = run("torch", "import sys; sys.modules['odesteer_tl.portable'] = None; import odesteer_tl.portable",
               "-m", "odesteer_tl", "methods")  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr
