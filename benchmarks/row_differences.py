"""Paired differences between the rows of a benchmark that was run, with 95 % intervals over its items.

    python benchmarks/row_differences.py hh/result.json --measure margin --less "random direction"

A line per row and level: its mean less that of the row `--less` at the same level.
"""

import argparse
import json
from pathlib import Path

import torch

from odesteer_tl.evaluation.metrics import bootstrap_interval


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--measure", required=True)
    parser.add_argument("--less", required=True)
    given = parser.parse_args()
    rows = json.loads(given.result.read_text(encoding="utf-8"))["rows"]
    scores = {(row["name"], row["level"]): torch.tensor(row["scores"][given.measure]).double() for row in rows}
    for (name, level), own in scores.items():
        other = scores.get((given.less, level))
        if other is not None and name != given.less:
            low, high = bootstrap_interval((own - other).unsqueeze(1))
            print(f"{name}, {level}: {float((own - other).mean()):+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    main()
