"""Writes constraints.txt: every package, transitive ones too, at the version that a new environment resolves to today.

    python scripts/pin.py            # some minutes; needs an interpreter that has a wheel of torch to install

The pins come from the interpreter that runs this (Python 3.11 in CI). Then each further Python of `PYTHONS` is asked,
by pip's resolver and without installing, whether it can have the same ones; what it cannot is printed, to be given a
marker by hand, and the exit code is 1.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
TORCH = "torch==2.13.0"
HEAD = """# Every package that odesteer_tl[dev,docs,tutorials] is tested with, for Python 3.11 to 3.13 on a CPU.
# pip install -e . -c constraints.txt; made by scripts/pin.py, see CONTRIBUTING.md.
"""


def frozen() -> list[str]:
    """The versions in a new environment with torch and the package's own dependencies."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [f"{place}/bin/pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", TORCH], check=True)
        subprocess.run([*pip, "install", "-q", "-e", f"{ROOT}[dev,docs,tutorials]"], check=True)
        listed = subprocess.run([*pip, "freeze", "--exclude-editable"], check=True, capture_output=True, text=True)
    lines = [re.sub(r"\+\w+$", "", line) for line in listed.stdout.splitlines() if "==" in line]
    return sorted(lines, key=str.lower)


def refused(python: str) -> str:
    """What pip's resolver says against these pins on another Python; empty where it has nothing to say."""
    with tempfile.TemporaryDirectory() as place:
        asked = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-deps", "--target", place]
        pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
        asked += ["--python-version", python, "--only-binary=:all:", *(p for p in pins if not _source_only(p))]
        said = subprocess.run(asked, capture_output=True, text=True)
    return "" if said.returncode == 0 else said.stderr.strip()


def _source_only(pin: str) -> bool:
    """Pure Python that its authors publish without a wheel: any Python can build it."""
    return pin.partition("==")[0] in ("transformers-stream-generator", "transformers_stream_generator")


def main() -> int:
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(frozen()) + "\n", encoding="utf-8")
    bad = {python: told for python in PYTHONS[1:] if (told := refused(python))}
    for python, told in bad.items():
        print(f"Python {python} cannot have these pins:\n{told}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
