"""What the reduced flow saves: one call of `steer`, ten Euler steps, against the direct integration of the same field.

    python benchmarks/steer_call.py

Landmarks and weights are random, so nothing is fitted. The direct flow is timed with the landmarks row by row [m, d]
and with a column-major copy, and the faster of the two counts. Runs are paired: each ratio comes from one reduced call
and one direct call timed next to each other, in turn, and the median of the ratios is printed with its quartiles.
"""

import argparse
from dataclasses import replace
from statistics import median, quantiles

import torch
from paired import seconds

from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Kernel
from odesteer_tl.flows.fields import UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.flows.solvers import Euler


def barrier(degree: int, d_model: int, rank: int, seed: int) -> LogRatioBarrier:
    """A log ratio on `rank` random landmarks of the unit sphere, as float32 as a fitted one."""
    generator = torch.Generator().manual_seed(seed)
    landmarks = torch.nn.functional.normalize(torch.randn(rank, d_model, generator=generator), dim=-1)
    weight = torch.randn(rank, generator=generator)
    return LogRatioBarrier(Kernel(landmarks, torch.eye(rank), degree, gamma=0.1, coef0=1.0), weight, 0.0)


def column_major(h: LogRatioBarrier) -> LogRatioBarrier:
    """The same numbers with the landmarks stored column by column."""
    assert isinstance(h.features, Kernel)
    return replace(h, features=replace(h.features, landmarks=h.features.landmarks.T.contiguous().T))


def measure(degree: int, args: argparse.Namespace) -> None:
    """Print one line: how many times faster the reduced flow is, its cost, and how far the results lie apart."""
    h = barrier(degree, args.d_model, args.rank, args.seed)
    flows = {
        "reduced": Flow(UnitGradient(h), Euler(), args.steps, "reduced"),
        "row-major": Flow(UnitGradient(h), Euler(), args.steps, "direct"),
        "column-major": Flow(UnitGradient(column_major(h)), Euler(), args.steps, "direct"),
    }
    a = torch.randn(args.batch, args.d_model, generator=torch.Generator().manual_seed(args.seed + 1))
    T = args.relative_t * args.d_model**0.5
    with torch.inference_mode():
        ends = {name: flow(a, T) for name, flow in flows.items()}  # finds the coordinates once, and warms up
        gaps = [(ends[name] - ends["reduced"]).norm(dim=-1).max() for name in ("row-major", "column-major")]
        apart = float(max(gaps)) / T
        repeats = max(1, round(0.02 / seconds(lambda: flows["reduced"](a, T), 3)))
        runs = []
        for _ in range(args.runs):
            reduced = seconds(lambda: flows["reduced"](a, T), repeats)
            direct = {name: seconds(lambda name=name: flows[name](a, T), 1) for name in ("row-major", "column-major")}
            runs.append((reduced, direct["row-major"], direct["column-major"]))
    milliseconds = [1000 * median(run[i] for run in runs) for i in range(3)]
    layout = 1 if milliseconds[1] <= milliseconds[2] else 2
    ratios = [run[layout] / run[0] for run in runs]
    low, _, high = quantiles(ratios, n=4)
    ratio = f"{median(ratios):.1f}x ({low:.1f}–{high:.1f})"
    print(
        f"degree {degree}: reduced_over_direct {ratio} over {args.runs} paired runs"
        f" | reduced {milliseconds[0]:.2f} ms, direct {milliseconds[1]:.2f} ms row-major, {milliseconds[2]:.2f} ms"
        f" column-major | results apart by at most {apart:.1e} of T"
    )


def main() -> None:
    """Read the options and measure every degree asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degree", type=int, nargs="+", default=[2, 3], choices=[2, 3])
    parser.add_argument("--d-model", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--relative-t", type=float, default=0.1, help="T in units of √d_model, the norm of an input")
    parser.add_argument("--runs", type=int, default=41)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"d_model {args.d_model}, batch {args.batch}, rank {args.rank}, {args.steps} Euler steps, float32, "
        f"{args.threads} CPU thread(s), torch {torch.__version__}"
    )
    for degree in args.degree:
        measure(degree, args)


if __name__ == "__main__":
    main()
