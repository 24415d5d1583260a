"""Whether steering reaches the desired region where that is known: three planted problems, judged by the truth.

    python benchmarks/planted.py

Planted are two classes of equal means in a plane of 16 dimensions: Gaussians with different covariances, XOR, and a
ring within and around which the undesired class lies. No linear barrier can tell the classes apart. The AUCs are those
of held-out activations. The other columns are shares of undesired activations, none of which starts there, that end in
the true desired region; that is bounded, so that flying far away does not count (tests/planted_problems.py says
which). Every method tries as many strengths; the best one on half of the activations is judged on the other half. Mean
± standard deviation over the seeds, which turn the plane and draw the samples.

`own T` is one step with a T chosen by the truth for each activation: what still misses has the wrong direction, the
rest only the one T for all. `best vector` is the best of all constant vectors in the plane, on a grid, chosen by the
truth: about the most that CAA, ITI or any other linear method could reach. MiMiC (without its gate, a linear
classifier) is the optimal transport between two Gaussians: the first problem is made for it, the other two are not.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import torch

from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.methods import MiMiC, StepODESteer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planted_problems import GRID, PROBLEMS, Planted, judged, share_reached, strengths, vectors

COLUMNS = (
    "AUC linear", "AUC nonlinear", "AUC Bayes", "linear, one step", "linear, 10 steps", "nonlinear, one step",
    "nonlinear, 10 steps", "nonlinear, one step, own T", "best vector", "MiMiC",
)  # fmt: skip


def row(problem: Planted) -> list[float]:
    """The numbers of `COLUMNS` for one problem and seed."""
    found = judged(problem)
    one = StepODESteer(LogRatioBarrier.fit(problem.acts, problem.features), problem.acts.origin)
    anywhere = torch.stack([problem.truth.inside(moved) for moved in strengths(problem, one)]).any(0)
    mimic = MiMiC.fit(problem.acts, gate=False)
    fractions = [2 * (k + 1) / len(GRID) for k in range(len(GRID))]  # T = 1 is the whole map
    return [
        *(found.linear_auc, found.nonlinear_auc, found.bayes_auc, *found.reached.values()),
        float(anywhere.double().mean()),
        share_reached(problem, vectors(problem)),
        share_reached(problem, strengths(problem, mimic, fractions)),
    ]


def main() -> None:
    """Read the options and print a table, a line per problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    print("| problem | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, plant in PROBLEMS.items():
        columns = zip(*(row(plant(seed)) for seed in args.seeds), strict=True)
        spread = stdev if len(args.seeds) > 1 else lambda _: 0.0
        print(f"| {name} | " + " | ".join(f"{mean(c):.3f} ± {spread(c):.3f}" for c in columns) + " |")
    print(f"\n{len(args.seeds)} seeds, {time.perf_counter() - start:.0f} s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
