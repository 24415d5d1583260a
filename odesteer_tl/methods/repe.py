"""RepE (arXiv:2310.01405): add the main direction of the differences within pairs.

h(a) = vᵀ(a − (μ₊ + μ₋)/2), 0 halfway between the means; v = ∇h, constant and of length 1, in one step: a + T v.

Fit: v is the eigenvector of the largest eigenvalue of M = mean δδᵀ, δ = desired − undesired of one pair, with the sign
with which desired text projects higher, (μ₊ − μ₋)ᵀv ≥ 0. The official code orders the members of each pair at random,
so that half of the δ change sign, and then subtracts their mean. M is the limit of that: the sign of δ does not change
δδᵀ, and the mean of randomly signed δ tends to 0. So no random order is needed, and the mean difference stays in M.

Unpaired data have no pairs. Rows are not matched by index: every desired row is paired with every undesired one, the
average over random pairings, M = Σ₊ + Σ₋ + (μ₊ − μ₋)(μ₊ − μ₋)ᵀ. The spread within the sides, which cancels in real
pairs, is counted twice here, so v tilts towards it where it exceeds the shift between the sides.

`parity=True` is the port that the ODESteer paper compares: row i of one side minus row i of the other, paired or not,
up to the shorter side; the differences are centred, which removes the mean difference; the sign of v is arbitrary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from odesteer_tl._memory import check_room
from odesteer_tl._shapes import Direction, Samples
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.degeneracy import rounding_of
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear
from odesteer_tl.flows.fields import Constant
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.layers import Layers
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import View


@dataclass(frozen=True, eq=False)
class RepE(FlowMethod):
    """a + T v, v the unit principal direction of pair differences. `barrier` is linear along v, not a log ratio."""

    view: ClassVar[View] = View(
        "RepE", "vᵀa + const, v the main direction of pair differences", "v", "1",
        "any", "both sides", "arXiv:2310.01405",
    )  # fmt: skip

    barrier: LogRatioBarrier
    origin: Origin

    @classmethod
    def fit(cls, acts: ContrastiveActivations, *, parity: bool = False) -> "RepE":
        """Compute the first principal component in float64; for `parity` see the head of this file.

        Raises ValueError for fewer than 2 activations on a side, for pairs that do not differ by more than the rounding
        of their dtype, and where neither a square of the rows nor one of the dimensions fits into the memory.
        """
        acts.check("RepE", 2)
        desired, undesired = acts.desired.double(), acts.undesired.double()
        shift = desired.mean(0) - undesired.mean(0)
        if parity:
            shorter = min(len(desired), len(undesired))
            rows = desired[:shorter] - undesired[:shorter]
            rows = (rows - rows.mean(0)) / shorter**0.5
        elif acts.paired:
            rows = (desired - undesired) / len(desired) ** 0.5
        else:
            sides = [(side - side.mean(0)) / len(side) ** 0.5 for side in (desired, undesired)]
            rows = torch.cat([*sides, shift.unsqueeze(0)])
        # per coordinate, as one of them may be a thousand times as large as the others
        sizes = torch.maximum(desired.abs().amax(0), undesired.abs().amax(0))
        if bool((rows.norm(dim=0) <= rounding_of(acts.desired.dtype, acts.undesired.dtype) * sizes).all()):
            raise ValueError(
                "All pairs differ by the same vector, and parity=True subtracts it: fit RepE with parity=False."
            )
        v = main_direction(rows)
        if not parity and shift @ v < 0:
            v = -v
        middle = (desired.mean(0) + undesired.mean(0)) / 2
        return cls(LogRatioBarrier(Linear(normalize=False), v.float(), -float(middle @ v)), acts.origin)

    @classmethod
    def fit_layers(cls, acts: Sequence[ContrastiveActivations], *, parity: bool = False) -> Layers:
        """The method at several layers, as in the source: each with its own direction, all with one T.

            acts = ot.collect_layers(model, desired, undesired, [8, 10, 12], paired=True)
            with ot.steering(model, ot.RepE.fit_layers(acts), T=4.0): ...

        Raises ValueError as `fit` does, and for activations without a layer.
        """
        return Layers(tuple(cls.fit(of_layer, parity=parity) for of_layer in acts))

    @property
    def direction(self) -> torch.Tensor:
        """v [d_model], a unit vector."""
        return self.barrier.weight

    @cached_property
    def flow(self) -> Flow:
        return Flow(Constant(self.barrier.weight), steps=1)


def main_direction(rows: Samples) -> Direction:
    """The unit v that maximises ‖rows v‖: an eigenvector of rowsᵀrows, or of rows rowsᵀ if that is smaller."""
    n, d_model = rows.shape
    check_room(
        4 * 8 * min(n, d_model) ** 2, rows.device, f"The main direction of {n} differences in {d_model} dimensions",
        "fit fewer pairs.",
    )  # fmt: skip
    if n >= d_model:
        return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    v = rows.T @ torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -1]
    return v / v.norm()


register(
    RepE,
    row=1,
    parity={
        "RepE": lambda at: RepE.fit(at.acts()),
        "RepE, layers": lambda at: RepE.fit_layers([at.acts(layer) for layer in (0, 1)]),
    },
)
