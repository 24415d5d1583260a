"""Tries what lies beyond the tested versions: the newest of every dependency, whatever bounds pyproject.toml sets.

    python tests/newest.py [--all] [--keep FOLDER]      # --all: every test, not the fast ones alone

Makes a new environment (torch stays at the version that constraints.txt names), prints which packages are newer than
constraints.txt, and runs the tests that meet other libraries. Exits with pytest's code.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAST = ["tests/backends", "tests/portable", "tests/interventions"]
"""Where the package meets the libraries. The random programs, a minute, are left out."""


def unbounded() -> list[str]:
    """The dependencies by name alone, those of an extra that another extra asks for too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"]]
    own = re.compile(re.escape(project["name"]) + r"\[(.+)\]")
    for named in filter(None, map(own.match, list(wanted))):
        wanted += [one for extra in named[1].split(",") for one in extras[extra]]
    return sorted({re.split(r"[<>=!~ ]", one)[0] for one in wanted if not own.match(one)} - {"torch"})


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {_plain(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--all", action="store_true", help="run every test")
    options.add_argument("--keep", help="make the environment here, and leave it")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place, tested = asked.keep or temporary, pins()
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [f"{place}/bin/pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", f"torch=={tested['torch']}"], check=True)
        subprocess.run([*pip, "install", "-q", "--upgrade", *unbounded(), f"torch=={tested['torch']}"], check=True)
        subprocess.run([*pip, "install", "-q", "--no-deps", "-e", str(ROOT)], check=True)
        listed = subprocess.run([*pip, "freeze", "--exclude-editable"], check=True, capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            name, _, version = line.partition("==")
            pinned = tested.get(_plain(name))
            if pinned is not None and pinned != version.partition("+")[0]:
                print(f"{name}: tested with {pinned}, here {version}", flush=True)
        files = [] if asked.all else [*FAST, "--deselect", "tests/backends/test_fuzz_programs.py"]
        return subprocess.run([f"{place}/bin/python", "-m", "pytest", *files], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
