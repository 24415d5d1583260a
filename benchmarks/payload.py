"""What a method adds to a remote request: bytes, compressed as nnsight sends them, and what most of them are.

    python benchmarks/payload.py

The methods are fitted to random activations, as the numbers of a fit weigh the same whatever they say.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.backends import intervene
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.features import Polynomial, PolynomialSketch, RandomFourier
from odesteer_tl.methods import CAA, ITI, Method, ODESteer, RandomDirection, StepODESteer
from odesteer_tl.portable.gradients import leaves
from odesteer_tl.portable.nnsight.gather import effects_at
from odesteer_tl.remote.checks import payload_bytes

METHODS: dict[str, Callable[[ContrastiveActivations], Method]] = {
    "CAA": CAA.fit,
    "ITI": ITI.fit,
    "RandomDirection": RandomDirection.fit,
    "ODESteer": ODESteer.fit,
    "StepODESteer": StepODESteer.fit,
    "ODESteer, Polynomial(rank=64)": lambda acts: ODESteer.fit(acts, features=Polynomial(rank=64)),
    "ODESteer, RandomFourier(1000)": lambda acts: ODESteer.fit(acts, features=RandomFourier(1000)),
    "ODESteer, PolynomialSketch(8000)": lambda acts: ODESteer.fit(acts, features=PolynomialSketch(8000), tol=1e-4),
}


def line(name: str, method: Method) -> str:
    """Name, compressed bytes, and the largest tensor of what travels. The source of the functions is some 10 kB."""
    travelling: Any = method.portable()
    total, held = payload_bytes(method), [leaf for leaf in leaves(travelling.parts) if isinstance(leaf, Tensor)]
    largest, numbers = max(held, key=lambda t: t.nbytes), sum(t.nbytes for t in held)
    share = f"{largest.nbytes / numbers:.0%} of {numbers:,} bytes of numbers"
    return f"{name}: {total:,} bytes compressed | largest: {str(largest.dtype)[6:]} {list(largest.shape)}, {share}"


def main() -> None:
    """Read the options, fit, and print a line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=600, help="of each side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator, began = torch.Generator().manual_seed(args.seed), time.perf_counter()
    shift, *sides = torch.randn(2 * args.samples + 1, args.d_model, generator=generator).split([1, *[args.samples] * 2])
    acts = ContrastiveActivations(sides[0] + 0.1 * shift, sides[1], layer=16)
    print(f"d_model {args.d_model}, {args.samples} samples of each side")
    for name, fit in METHODS.items():
        print(line(name, fit(acts)), flush=True)
    print(f"ot.intervene itself: {payload_bytes(intervene):,} bytes compressed")
    both = payload_bytes((intervene, effects_at))
    print(f"with what measures KL, gains and lifts for ot.calibrate: {both:,} bytes compressed")
    print(f"fitted and measured in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
