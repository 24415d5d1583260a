"""What a fit costs: time and memory against the size of the activations, and against scikit-learn's own pipeline.

    python benchmarks/fit_cost.py                        # 20,000 activations against scikit-learn, five seeds
    python benchmarks/fit_cost.py --growth 20000 100000  # memory and time of the package alone; a process for each size

The pipeline is the paper's estimator as scikit-learn has it: PolynomialCountSketch(8000, degree 2, gamma .1, coef0 1)
on unit rows, then LogisticRegression, in float64. Limits: the activations themselves, which are in memory before the
fit begins; and 2 n d m flops for the kernel with m landmarks, in float64.
"""

import argparse
import subprocess
import sys
import time
from statistics import fmean

import torch
from activations import crowded
from paired import line
from peak import Peak

import odesteer_tl as ot
from odesteer_tl.flows.barriers import auc


def growth(n: int, d_model: int, threads: int) -> None:
    """One line: seconds and peak memory of a fit to n activations, after a small one that loads the libraries."""
    torch.set_num_threads(threads)
    ot.ODESteer.fit(crowded(600, d_model, seed=1))
    acts = crowded(n, d_model, seed=0)
    held = n * d_model * 4 / 1e6
    with Peak() as peak:
        start = time.perf_counter()
        ot.ODESteer.fit(acts)
        seconds = time.perf_counter() - start
    print(
        f"fit_{n} peak_over_activations {1 + peak.above / held:.2f} | {seconds:.1f} s, {1e6 * seconds / n:.0f} µs per "
        f"activation; activations {held:.0f} MB, {peak.above:.0f} MB more at the peak"
    )


def against_scikit(n: int, d_model: int, seeds: int, threads: int) -> None:
    """Two lines: how many times faster, and what the AUC on as many other activations loses or gains."""
    from sklearn.kernel_approximation import PolynomialCountSketch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    torch.set_num_threads(threads)
    ot.ODESteer.fit(crowded(600, d_model, seed=1))
    ratios, gains, ours, theirs = [], [], [], []
    for seed in range(seeds):
        acts, held_out = crowded(n, d_model, seed), crowded(n, d_model, 1000 + seed)
        start = time.perf_counter()
        method = ot.ODESteer.fit(acts)
        ours.append(time.perf_counter() - start)
        mine = auc(method.barrier, held_out.desired, held_out.undesired)
        rows, labels = torch.cat([acts.desired, acts.undesired]).double().numpy(), [1] * (n // 2) + [0] * (n // 2)
        pipeline = make_pipeline(
            Normalizer(),
            PolynomialCountSketch(degree=2, gamma=0.1, coef0=1, n_components=8000, random_state=seed),
            LogisticRegression(max_iter=1000),
        )
        start = time.perf_counter()
        pipeline.fit(rows, labels)
        theirs.append(time.perf_counter() - start)
        del rows
        scores = [
            float(score)
            for side in (held_out.desired, held_out.undesired)
            for part in side.split(2000)
            for score in pipeline.decision_function(part.double().numpy())
        ]
        gains.append(mine - float(roc_auc_score(labels, scores)))
        ratios.append(theirs[-1] / ours[-1])
    print(line("scikit_over_fit", ratios, f"{fmean(theirs):.1f} s against {fmean(ours):.1f} s"))
    print(f"auc_gain {fmean(gains):+.4f} ({min(gains):+.4f}–{max(gains):+.4f}) over {seeds} seeds, held out")


def main() -> None:
    """Read the options; sizes to grow through run in processes of their own, so that no memory is left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--d-model", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--growth", type=int, nargs="+")
    parser.add_argument("--alone", type=int, help="one size, in this process")
    args = parser.parse_args()
    if args.alone:
        growth(args.alone, args.d_model, args.threads)
    elif args.growth:
        for n in args.growth:
            own = ["--alone", str(n), "--d-model", str(args.d_model), "--threads", str(args.threads)]
            subprocess.run([sys.executable, __file__, *own], check=True)
    else:
        against_scikit(args.n, args.d_model, args.seeds, args.threads)


if __name__ == "__main__":
    main()
