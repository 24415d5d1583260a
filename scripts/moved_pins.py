"""Prints what odesteer_tl itself asks for, its extra `dev` included, that is installed at another version than its pin.

    python scripts/moved_pins.py

Nothing where all are the pins of constraints.txt: the tests that ran with the pins then say the same of these versions.
"""

from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("", "dev", "gguf")
PINS = Path(__file__).parents[1] / "constraints.txt"


def moved() -> list[str]:
    """A line for each. Raises PackageNotFoundError where one is not installed."""
    lines = (Requirement(line) for line in PINS.read_text(encoding="utf-8").splitlines() if "==" in line)
    pins = {canonicalize_name(one.name): one for one in lines if one.marker is None or one.marker.evaluate()}
    found = []
    for name in _asked_for():
        own = version(name)
        if name not in pins or not pins[name].specifier.contains(own.partition("+")[0], prereleases=True):
            found.append(f"{name} {own}, {pins.get(name, 'without a pin')}")
    return found


def _asked_for() -> list[str]:
    all_asked = map(Requirement, requires("odesteer_tl") or [])
    taken = [one for one in all_asked if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in EXTRAS)]
    return [name for name in (canonicalize_name(one.name) for one in taken) if name != "odesteer-tl"]


if __name__ == "__main__":
    print("\n".join(moved()))
