"""RepE (arXiv:2310.01405): add the main direction in which the two members of a pair differ.

h(a) = vᵀ(a − (μ₊ + μ₋)/2), 0 halfway between the means; v = ∇h, constant and of length 1, in one step: a + T v.

Fit: v is the eigenvector of the largest eigenvalue of M = mean δδᵀ, δ = desired − undesired of one pair, with the sign
that makes desired text project higher, (μ₊ − μ₋)ᵀv ≥ 0. The official reading orders the members of each pair at random,
so that half of the δ change sign, and then subtracts their mean. M is what that tends to: δδᵀ does not see a sign, and
the mean of randomly signed δ tends to 0. So the order needs no chance, and the mean difference stays in M, here as
there.

Unpaired data has no pairs to read. Rows are not aligned by index; every desired row is paired with every undesired one,
which is what random pairings give on average: M = Σ₊ + Σ₋ + (μ₊ − μ₋)(μ₊ − μ₋)ᵀ. Spread within the sides, which real
pairs cancel, counts twice here, so v leans towards it wherever it exceeds the shift between the sides.

`parity=True` is the port that the ODESteer paper compares: row i of one side minus row i of the other, paired or not,
up to the shorter side; the differences centred, which takes the mean difference out; the sign as it falls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from odesteer_tl._memory import check_room
from odesteer_tl._shapes import Direction, Samples
from odesteer_tl.data.activations import ContrastiveActivations, Origin
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
    """a + T v, v the unit principal direction of pair differences. `barrier` is linear along v, no log ratio."""

    view: ClassVar[View] = View(
        "RepE", "vᵀa + const, v the main direction of pair differences", "v", "1",
        "any", "both sides", "arXiv:2310.01405",
    )  # fmt: skip

    barrier: LogRatioBarrier
    origin: Origin

    @classmethod
    def fit(cls, acts: ContrastiveActivations, *, parity: bool = False) -> "RepE":
        """Take the first principal component, in float64; `parity` as the head of this file says.

        Raises ValueError for fewer than 2 activations on a side, where the pairs do not differ, and where both rows and
        dimensions are so many that a square of either fills the memory.
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
        size = max(float(side.abs().max()) for side in (desired, undesired))
        if float(rows.square().sum(0).amax()) <= (1e-12 * size) ** 2:
            raise ValueError(
                "RepE needs pairs that differ; these differ by one and the same vector, and parity=True centres it "
                "away."
            )
        v = main_direction(rows)
        if not parity and shift @ v < 0:
            v = -v
        middle = (desired.mean(0) + undesired.mean(0)) / 2
        return cls(LogRatioBarrier(Linear(normalize=False), v.float(), -float(middle @ v)), acts.origin)

    @classmethod
    def fit_layers(cls, acts: Sequence[ContrastiveActivations], *, parity: bool = False) -> Layers:
        """The method at several layers, as the source controls: each with its own direction, all with one T.

            acts = ot.collect_layers(model, desired, undesired, [8, 10, 12], paired=True)
            with ot.steering(model, ot.RepE.fit_layers(acts), T=4.0): ...

        Raises ValueError as `fit` does, and for activations that do not know their layer.
        """
        return Layers(tuple(cls.fit(each, parity=parity) for each in acts))

    @property
    def direction(self) -> torch.Tensor:
        """v [d_model], of length 1."""
        return self.barrier.weight

    @cached_property
    def flow(self) -> Flow:
        return Flow(Constant(self.barrier.weight), steps=1)


def main_direction(rows: Samples) -> Direction:
    """The unit v that maximises ‖rows v‖: an eigenvector of rowsᵀrows, or of rows rowsᵀ where that is the smaller."""
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
