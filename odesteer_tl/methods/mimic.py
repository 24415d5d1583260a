"""MiMiC (arXiv:2402.09631): where a classifier predicts undesired text, match the desired mean and covariance.

h(a) = log p₊(a)/p₋(a), the gate: a logistic regression on raw activations. v(a) = map(a) − a where that predicts
undesired and 0 elsewhere, map(a) = μ₊ + A(a − μ₋), in one step: a + T v(a). T = 1 is the published map, T between 0 and
1 a part of the straight way. Without the gate v = ∇[½aᵀ(A − I)a + cᵀa], c = μ₊ − Aμ₋: a gradient flow, though not of h.

Fit: A is the optimal map between N(μ₋, Σ₋) and N(μ₊, Σ₊) (Bures, Wasserstein), symmetric and positive definite,
A = S^-½ (S^½ Σ₊ S^½)^½ S^-½ with S = Σ₋; `reg`·I is added to both covariances (1/n), so that A(Σ₋ + reg I)A =
Σ₊ + reg I exactly and the covariance of mapped samples is Σ₊ + reg(I − A²). A is computed once, in float64. In
directions in which no sample varies both covariances are reg I, and A is I. With fewer samples than half of the
dimensions, A is therefore computed and kept in their span alone, A − I = U λ Uᵀ: the same map in less memory and time.

The gate is scikit-learn's own prediction: undesired where the probability is ≤ ½. That threshold includes the number of
rows per side: h(a) ≤ log(n₋/n₊), not h(a) ≤ 0.

This is the map of the port that the ODESteer paper compares. The port converts to numpy at every call and ignores T,
which changes no number at T = 1, so there is no `parity=True`. (The official code adds 1e-7 to every entry of the
covariances, a mistake that is not repeated here.)
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._memory import check_room
from odesteer_tl._shapes import Direction
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import FRACTION, View
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.integrate import affine_pull, euler, flowed, gated_pull
from odesteer_tl.portable.methods import PortableMethod
from odesteer_tl.remote.payloads import packed

Square = Float[Tensor, "d_model d_model"]
Factors = tuple[Float[Tensor, "d_model k"], Float[Tensor, " k"]]
"""(U, λ) of U λ Uᵀ, U orthonormal."""


@dataclass(frozen=True, eq=False)
class MiMiC(FlowMethod):
    """a + T gate(a) (map(a) − a), map(a) − a = `stretch` (a − `source`) + `shift`.

    T counts fractions of the map, whatever ‖a‖. `stretch` is A − I, or its (U, λ), `source` μ₋, `shift` μ₊ − μ₋;
    `prior` is log(n₋/n₊). With `gate=False` every activation is mapped. The gate is decided at the start of the step.
    """

    view: ClassVar[View] = View(
        "MiMiC", "θᵀa + b + log(n₋/n₊), its gate", "gate(a)·(μ₊ + A(a − μ₋) − a)", "1",
        "any", "both sides", "arXiv:2402.09631", FRACTION,
    )  # fmt: skip

    barrier: LogRatioBarrier
    stretch: Square | Factors
    source: Direction
    shift: Direction
    prior: float
    origin: Origin
    gate: bool = True

    speed: ClassVar[float | None] = None

    @classmethod
    def fit(
        cls,
        acts: ContrastiveActivations,
        *,
        reg: float = 1e-2,
        gate: bool = True,
        C: float = 1.0,
        tol: float = 1e-4,
    ) -> "MiMiC":
        """Fit map and gate; C and tol are those of the gate's regression.

        Raises ValueError for fewer than 2 activations on a side, a `reg` that is not positive and finite, and where
        both samples and dimensions are so many that the covariances fill the memory.
        """
        acts.check("MiMiC", 2)
        if not 0 < reg < math.inf:
            raise ValueError(f"reg, which is added to the variances, must be positive and finite, got {reg}.")
        source, target = acts.undesired.double(), acts.desired.double()
        stretch = _stretch(source, target, reg)
        return cls(
            LogRatioBarrier.fit(acts, Linear(normalize=False), C=C, tol=tol),
            stretch,
            source.mean(0).float(),
            (target.mean(0) - source.mean(0)).float(),
            math.log(len(source) / len(target)),
            acts.origin,
            gate,
        )

    @property
    def matrix(self) -> Square:
        """A [d_model, d_model], symmetric and positive definite."""
        stretch = self.stretch
        if not isinstance(stretch, Tensor):
            vectors, values = stretch
            stretch = vectors * values @ vectors.T
            stretch = (stretch + stretch.T) / 2  # to the last bit
        return stretch + torch.eye(len(stretch), dtype=stretch.dtype, device=stretch.device)

    @cached_property
    def flow(self) -> Flow:
        return Flow(self._pull, steps=1)

    def portable(self) -> PortableMethod:
        """The map and its gate, as plain tensors."""
        parts = packed((self._pull, euler, 1, None))
        return self._as_portable(flowed, parts)

    @property
    def _pull(self) -> GradientFunction:
        """v: a ↦ gate(a) (map(a) − a), as a plain function and its parameters."""
        params = (self.stretch, self.source, self.shift)
        if not self.gate:
            return GradientFunction(affine_pull, params)
        return GradientFunction(gated_pull, (*params, self.barrier.weight, self.barrier.bias - self.prior))


def _stretch(
    source: Float[Tensor, "n_source d_model"], target: Float[Tensor, "n_target d_model"], reg: float
) -> Square | Factors:
    """A − I in float32, as a full matrix or in the span of the centred samples."""
    d_model, rows = source.shape[1], len(source) + len(target)
    sides = [side - side.mean(0) for side in (source, target)]
    in_span = 2 * rows < d_model
    needed = 8 * (4 * rows * d_model if in_span else 8 * d_model**2)
    check_room(
        needed, source.device, f"MiMiC's map of {rows} samples in {d_model} dimensions",
        f"fit fewer samples; fewer than {(d_model + 1) // 2} need no matrix of {d_model} × {d_model}.",
    )  # fmt: skip
    basis = torch.linalg.qr(torch.cat(sides).T).Q if in_span else None
    inner = sides if basis is None else [side @ basis for side in sides]
    identity = torch.eye(inner[0].shape[1], dtype=source.dtype, device=source.device)
    covariances = [x.T @ x / len(x) + reg * identity for x in inner]
    stretch = _optimal_map(*covariances) - identity
    if basis is None:
        return stretch.float()
    values, vectors = torch.linalg.eigh(stretch)
    return (basis @ vectors).float(), values.float()


def _optimal_map(source: Square, target: Square) -> Square:
    """A with A S A = T for covariances S and T, symmetric and positive definite."""
    values, vectors = torch.linalg.eigh(source)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    values, vectors = torch.linalg.eigh(root @ target @ root)
    half = (inverse @ vectors) * values.clamp_min(0) ** 0.25
    return half @ half.T


register(MiMiC, row=4, parity={"MiMiC": lambda at: replace(MiMiC.fit(at.acts()), prior=1e6)})
# with the gate open: behind a closed gate a mistake would not show
