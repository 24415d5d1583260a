"""ODESteer inside the loop: does a nonlinear barrier at every layer, fed back, beat a barrier or a loop alone?

    python benchmarks/barrier_loop.py        # the embedded model

At each layer h_k is ODESteer's barrier, fitted to what enters the block at the texts' last tokens; v_k = ∇h_k/‖∇h_k‖ at
the current activation, and the set-point is a value of h: h*_k = T times the way from the undesired texts' mean h_k to
the desired texts'. The gap counted along v is α_k = (h*_k − h_k)/‖∇h_k‖, at most `FARTHEST` of ‖z‖ either way, as h is
bounded. What is added is K_k(α v) with the gains of A-LQR, or S-PID's proportional part. Judge, prompts and the budget
of KL are those of `odesteer-tl compare`; a difference is one where the bootstrap leaves out 0.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import odesteer_tl as ot
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.origin import Origin
from odesteer_tl.evaluation.data import Source
from odesteer_tl.evaluation.differences import difference
from odesteer_tl.evaluation.entries import FEW, LITERATURE, LOOPS, Entry
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.flows.barriers import LogRatioBarrier

FARTHEST = 1.0
PROPORTIONAL = 0.7


@dataclass(frozen=True, eq=False)
class BarrierLoop(FeedbackController):
    """u_k = K_k(α_k v_k(z_k)) at each layer; `ends` are the mean h of undesired and desired texts [layers, 2]."""

    directions: Tensor
    set_points: Tensor
    layers: tuple[int, ...]
    origin: Origin
    barriers: tuple[LogRatioBarrier, ...]
    ends: Tensor
    gains: Tensor

    def edits(self, T: Any = None, *, relative_T: Any = None, layer: int | None = None) -> list[ot.Edit]:
        """One per layer: read what enters, add to what leaves."""
        return [self._edit(number, T) for number in range(len(self.layers))]

    def _edit(self, number: int, T: float) -> ot.Edit:
        barrier, (low, high), K = self.barriers[number], self.ends[number].tolist(), self.gains[number]

        def apply(read: Tensor, write: Tensor, state: ot.State) -> Tensor:
            z = read.float()
            slope = barrier.grad(z)
            size = slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
            most = FARTHEST * z.norm(dim=1, keepdim=True)
            alpha = ((low + T * (high - low) - barrier.value(z).unsqueeze(1)) / size).clamp(-most, most)
            return (write + (alpha * slope / size) @ K.T).to(write.dtype)

        place = self.layers[number]
        return ot.Edit(ot.Site(place, "resid_pre"), ot.Site(place), apply)

    def _law(self) -> Any:
        raise NotImplementedError


@cache
def parts(model: Any, desired: tuple[str, ...], undesired: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """A-LQR with its gains, a barrier per layer, and the mean h of both sides."""
    loop = ot.ALQR.fit(model, list(desired), list(undesired), keep_gains=True, progress=False, **FEW)
    acts = ot.collect_layers(model, list(desired), list(undesired), loop.layers, site="resid_pre", progress=False)
    barriers = tuple(LogRatioBarrier.fit(each, ot.Polynomial()) for each in acts)
    ends = [
        [float(h.value(a).mean()) for a in (each.undesired, each.desired)]
        for h, each in zip(barriers, acts, strict=True)
    ]
    return loop, barriers, torch.tensor(ends)


def inside(source: Source, regulated: bool) -> BarrierLoop:
    """The barriers in the loop of A-LQR, or of a proportional controller."""
    loop, barriers, ends = parts(source.model, tuple(source.desired), tuple(source.undesired))
    eye = torch.eye(loop.gains.shape[-1]).expand_as(loop.gains)
    gains = loop.gains if regulated else PROPORTIONAL * eye
    return BarrierLoop(0 * loop.directions, 0 * loop.set_points, loop.layers, loop.origin, barriers, ends, gains)


def main() -> None:
    """Read the options, compare, and print the table and the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = ot.load_demo()
    rows = {
        "ODESteer": LITERATURE["ODESteer"], "A-LQR": LOOPS["A-LQR"], "S-PID": LOOPS["S-PID"],
        "h in A-LQR": Entry(lambda source, seed: inside(source, True), "model"),
        "h in P": Entry(lambda source, seed: inside(source, False), "model"),
    }  # fmt: skip
    found = ot.compare(
        demo.model, demo, rows, judge=Judge.load_embedded().positive_probability, seeds=range(args.seeds),
        samples=args.samples,
    )  # fmt: skip
    print(found.table())
    print(f"\n{'points of the judged share':<28}{'difference':>13} {'95 %':>15}")
    for mine, other in (
        ("h in A-LQR", "ODESteer"),
        ("h in A-LQR", "A-LQR"),
        ("h in P", "ODESteer"),
        ("h in P", "S-PID"),
    ):
        print(f"{f'{mine} − {other}':<28}{difference(found.row(mine), found.row(other))}")


if __name__ == "__main__":
    main()
