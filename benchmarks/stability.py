"""Whether the table of `odesteer-tl demo` holds: seeds, thread counts, and inputs moved by rounding.

    python benchmarks/stability.py [--seeds 0 1 2] [--seeds-alone] [--quick] [--jobs 2]

Each run is a demo in a process of its own. Printed are, per row, the shift in points of every run, its mean and its
largest distance from that mean (goal: 6 points), whether the rows that differ by more than their intervals keep their
order, and what a run costs. One run moves every weight of the model by 1e-6, relative.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import gettempdir

RUN = """
import sys
import torch
from odesteer_tl.evaluation.reports import demo

seed, perturb, quick, picture = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "1", sys.argv[4]
load = demo.load_demo

def perturbed(*what):
    found = load(*what)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.mul_(1 + perturb * torch.randn(parameter.shape, generator=generator))
    return found

demo.load_demo = perturbed
demo.run_showcase(seed=seed, quick=quick, json_output=True, picture=picture)
"""


def run(seed: int, threads: int, perturb: float, *, quick: bool) -> dict:
    waits = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin would stand in the way of the job beside them
    environment = {**os.environ, **waits, "OMP_NUM_THREADS": str(threads), "MPLBACKEND": "Agg"}
    command = [
        sys.executable,
        "-c",
        RUN,
        str(seed),
        str(perturb),
        str(int(quick)),
        str(Path(gettempdir()) / "stability.png"),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    base, *rows = ({"name": row["name"]} | row["runs"][0] for row in facts["rows"])  # the first budget
    rows = {row["name"]: row for row in rows}
    return {"base": base, "rows": rows, "place": facts["place"], "seconds": time.perf_counter() - start}


def over(values: list[float], digits: int, sign: str = "") -> str:
    """The mean, with the least and the most."""
    mean, least, most = (f"{value:{sign}.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({least} – {most})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--quick", action="store_true")
    options.add_argument("--seeds-alone", action="store_true", help="no other number of threads, no moved weights")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time")
    asked = options.parse_args()
    first = asked.seeds[0]
    runs = {f"seed {seed}": (seed, 1, 0.0) for seed in asked.seeds}
    if not asked.seeds_alone:
        runs |= {"2 threads": (first, 2, 0.0), "weights ± 1e-6": (first, 1, 1e-6)}
    found = {}
    with ThreadPoolExecutor(asked.jobs) as pool:
        started = {name: pool.submit(run, *what, quick=asked.quick) for name, what in runs.items()}
        for name, each in started.items():
            found[name] = each.result()
            shifts = {row: round(100 * each["shift"], 1) for row, each in found[name]["rows"].items()}
            print(f"{name}: {found[name]['seconds']:.0f} s, {shifts}", file=sys.stderr, flush=True)
    print(f"{'shift, points':<18}" + "".join(f"{name:>16}" for name in found) + f"{'mean':>8}{'farthest':>10}")
    names = list(next(iter(found.values()))["rows"])
    shifts = {name: [100 * each["rows"][name]["shift"] for each in found.values()] for name in names}
    for name, values in shifts.items():
        mean = sum(values) / len(values)
        far = max(abs(value - mean) for value in values)
        print(f"{name:<18}" + "".join(f"{value:>+16.1f}" for value in values) + f"{mean:>+8.1f}{far:>10.1f}")
    seeds = ", ".join(map(str, asked.seeds))
    print(f"\n| seeds {seeds}: mean (least – most) | moved ‖a(T) − a‖/‖a‖ | desired, % | shift, points | ppl ratio |")
    print("|---|---|---|---|---|")
    seeded = [found[f"seed {seed}"] for seed in asked.seeds]
    print(f"| no steering | 0 | {over([100 * each['base']['share'] for each in seeded], 1)} | | 1 |")
    for name in names:
        rows = [each["rows"][name] for each in seeded]
        moved, ratio = (
            over([row["displacement"] for row in rows], 2),
            over([row["perplexity_ratio"] for row in rows], 2),
        )
        share, shift = over([100 * row["share"] for row in rows], 1), over([100 * row["shift"] for row in rows], 1, "+")
        print(f"| {name} | {moved} | {share} | {shift} | {ratio} |")
    print(f"\nplaces: {', '.join(dict.fromkeys(each['place'] for each in found.values()))}")
    turned = []
    for one in names:
        for other in names:
            pairs = [(each["rows"][one], each["rows"][other]) for each in found.values()]
            above = [mine["shift_interval"][0] > theirs["shift_interval"][1] for mine, theirs in pairs]
            below = [mine["shift"] < theirs["shift"] for mine, theirs in pairs]
            if any(above) and any(below):
                turned.append(f"{one} > {other}")
    print(
        f"pairs that differ significantly in one run and stand the other way in another: {', '.join(turned) or 'none'}"
    )


if __name__ == "__main__":
    main()
