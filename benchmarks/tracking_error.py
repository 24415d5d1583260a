"""How a closed loop keeps to its set-points on the embedded model: the tables and the picture of docs/closed_loop.md.

    python benchmarks/tracking_error.py --picture docs/tracking.png

A-LQR is fitted on the demo's texts and tracks T times their set-points on its validation prompts.
"""

import argparse

import torch

import odesteer_tl as ot
from odesteer_tl.control import local_linearity, set_point_tracking, tracking_bound


def main() -> None:
    """Read the options, fit, and print a table each of tracking, linearity and the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--T", type=float, default=2.0)
    parser.add_argument("--r", type=float, default=0.1, help="weight of the control; q = q_f = 0.1")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--picture", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = ot.load_demo()
    prompts = demo.validation_prompts[: args.prompts]
    method = ot.ALQR.fit(
        demo.model, demo.desired, demo.undesired, r=args.r, n_jacobians=5, context=16, keep_gains=True, progress=False
    )
    found = set_point_tracking(demo.model, method, prompts, args.T)
    print(f"A-LQR, q = q_f = 0.1, r = {args.r:g}, T = {args.T:g}, {len(prompts)} prompts of the embedded model\n")
    print(found.table())
    print("\nJacobians of 4 prompts: similarity, and relative error of the own / the mean one\n")
    print(local_linearity(demo.model, prompts[:4]).table())
    print("\nThe bound, in the weights P\n")
    print(tracking_bound(demo.model, method, prompts[:8], args.T).table())
    if args.picture:
        ot.plots.tracking({f"A-LQR on the embedded model, T = {args.T:g}": found}).savefig(args.picture)


if __name__ == "__main__":
    main()
