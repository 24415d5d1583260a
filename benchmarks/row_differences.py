"""Paired differences between the rows of a benchmark that was run, with 95 % intervals over its items.

    python benchmarks/row_differences.py hh/result.json --measure margin --less "random direction"

A line per row and level: its mean less that of the row `--less` at the same level.
"""

import argparse
import json
from pathlib import Path

from odesteer_tl.benchmarks.result import BenchmarkRow


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--measure", required=True)
    parser.add_argument("--less", required=True)
    given = parser.parse_args()
    kept = json.loads(given.result.read_text(encoding="utf-8"))["rows"]
    rows = [BenchmarkRow(**{name: value for name, value in row.items() if name != "measures"}) for row in kept]
    less = {row.level: row for row in rows if row.name == given.less}
    for row in rows:
        if row.level in less and row.name != given.less:
            mean, low, high = row.minus(less[row.level], given.measure)
            print(f"{row.name}, {row.level}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    main()
