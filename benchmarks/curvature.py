"""Where a nonlinear barrier or several steps buy more than a vector, at one budget of KL.

    python scripts/get_smollm2.py smollm2
    python benchmarks/curvature.py smollm2 --data DATA --axis toxicity --layers 18 22 26 [--texts 150 1000]

Data, texts and judges are those of benchmarks/defaults.py. All methods are fitted on the same activations, at the
strength that spends the budget on the judge's first 50 pairs; the shift is over `--pairs` of them, on which nothing was
fitted, and "over" another method is the difference pair by pair; both in nats, mean and standard error. `--texts`: how
many a side are fitted on. At the end: the mean difference over the seeds.
"""

import argparse
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from defaults import AXES, FIT, JUDGED, Axis, judge_of, shifts_of, with_error
from lower_blocks import lower_blocks_kept

import odesteer_tl as ot
from odesteer_tl.backends.huggingface.parts import blocks_in
from odesteer_tl.flows.barriers import auc

Methods = dict[str, Callable[[ot.ContrastiveActivations], Any]]
CURVED: dict[str, Any] = {"features": ot.Polynomial(gamma=1.0), "C": 10.0}
METHODS: Methods = {
    "CAA": ot.CAA.fit,
    "h linear, ten steps": lambda acts: ot.ODESteer.fit(acts, features=ot.Linear()),
    "h of degree 2 (the default), ten steps": ot.ODESteer.fit,
    "gamma 1, C 10, ten steps": lambda acts: ot.ODESteer.fit(acts, **CURVED),
    "gamma 1, C 10, one step": lambda acts: ot.StepODESteer.fit(acts, **CURVED),
}
OTHERS = "CAA", "h linear, ten steps"
Differences = dict[tuple[Any, ...], list[tuple[float, float]]]


def main(methods: Methods = METHODS, doc: str | None = __doc__) -> None:
    """Print a table for every seed, number of texts and place, and the mean over the seeds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file or a Hugging Face name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--axis", choices=AXES, required=True)
    parser.add_argument("--layers", nargs="+", type=int, required=True)
    parser.add_argument("--positions", nargs="+", choices=["last", "mean"], default=["last"])
    parser.add_argument("--texts", nargs="+", type=int, default=[FIT])
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=250)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "At blocks", UserWarning)  # sinks are left out, and that is said once a call
    model = ot.load_model(args.model, library="huggingface")
    print(f"{args.model}, {args.axis}, budget {args.kl} nats, up to {args.pairs} pairs, torch {torch.__version__}")
    found: Differences = {}
    for seed in args.seeds:
        axis = AXES[args.axis](args.data, random.Random(seed))
        judges = judge_of(model, axis.judge, JUDGED), judge_of(model, axis.judge, args.pairs)
        with lower_blocks_kept(model, blocks_in(model), most_rows=20000):
            for texts in args.texts:
                sides, queries = fitted_on(axis, texts, args.pairs)
                for position in args.positions:
                    read, held = (
                        ot.collect_layers(model, *each, args.layers, position=position, queries=own)
                        for each, own in ((sides, queries), (axis.held_out, axis.queries[1]))
                    )
                    for acts, out in zip(read, held, strict=True):
                        place = acts.layer, position, len(sides[0])
                        print(f"\nseed {seed}, layer {acts.layer}, {position}, {len(sides[0])} texts a side")
                        compare(methods, acts.without_sinks(), out, judges, args.kl, place, found)
    print("\nmean over the seeds ± standard error")
    for (layer, position, texts, name, other), each in found.items():
        mean, error = sum(d for d, _ in each) / len(each), sum(e**2 for _, e in each) ** 0.5 / len(each)
        print(f"layer {layer}, {position}, {texts} texts: {name:<40} over {other:<20} {mean:+.2f} ± {error:.2f}")


def fitted_on(axis: Axis, texts: int, pairs: int) -> tuple[tuple[list[str], list[str]], list[str] | None]:
    """Texts a side and their queries: those of the axis, and beyond them what its judge does not use, where both are
    answers to the same queries."""
    if axis.queries[0] is None or texts <= FIT:
        return (axis.fit[0][:texts], axis.fit[1][:texts]), None if axis.queries[0] is None else axis.queries[0][:texts]
    asked, up, down = (side[pairs : pairs + texts - FIT] for side in axis.judge)
    return (axis.fit[0] + up, axis.fit[1] + down), axis.queries[0] + asked


def compare(
    methods: Methods, acts: Any, out: Any, judges: tuple[Any, Any], kl: float, place: tuple[Any, ...],
    found: Differences,
) -> None:  # fmt: skip
    """Print a line for every method at one place, and add what it is over the others."""
    measured: dict[str, torch.Tensor] = {}
    for name, fit in methods.items():
        method, area = fit(acts), math.nan
        if method.barrier is not None:
            area = auc(method.to(dtype=torch.float64).barrier, out.desired.double(), out.undesired.double())
        shifts = shifts_of(judges[1], method, kl, judges[0])
        if shifts is None:
            print(f"{name:<40} {area:.2f}  spends it nowhere", flush=True)
            continue
        said = ["{:+.2f} ± {:.2f}".format(*with_error(shifts))]
        for other in (other for other in OTHERS if other in measured):
            over = with_error(shifts - measured[other])
            found.setdefault((*place, name, other), []).append(over)
            said.append("over {} {:+.2f} ± {:.2f}".format(other, *over))
        measured[name] = shifts
        print(f"{name:<40} {area:.2f}  {'   '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
