"""Attacks on what the package promises never to do, for as long as one likes; the tests run a few of each.

    python benchmarks/fuzz.py [kills loads flips folders programs flows lines replies] [--number N] [--seed S]

Each line printed is an attack, how many cases were tried, how they ended (of programs: the moves made), and seconds. A
case that breaks a promise ends the run with its seed and what was done. Without --number each
attack takes the number of its line in benchmarks/README.md. SECURITY.md says what is promised.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

ATTACKS = {
    "kills": ("fuzz_artefacts", 500),  # a process killed in the middle of a save
    "loads": ("fuzz_artefacts", 5_000),  # of a folder that two processes write
    "flips": ("fuzz_artefacts", 600),  # single bits of a saved folder
    "folders": ("fuzz_artefacts", 5_000),  # mutated ones
    "programs": ("fuzz_programs", 16_000),  # blocks, exceptions, interrupts, generators, threads, tasks
    "flows": ("fuzz_flows", 300_000),  # activations of every size through every method
    "lines": ("fuzz_command_line", 2_000),  # command lines with hostile values and files
    "replies": ("fuzz_server", 500),  # of a hostile server
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("attacks", nargs="*", choices=ATTACKS)
    options.add_argument("--number", type=int)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    for name in asked.attacks or ATTACKS:
        module, number = ATTACKS[name]
        start = time.perf_counter()
        number = asked.number or number
        counts = getattr(importlib.import_module(module), name)(number, asked.seed)
        ends = ", ".join(f"{end} {count:,}" for end, count in counts.most_common())
        print(f"{name}: {number:,} tried; {ends}; {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
