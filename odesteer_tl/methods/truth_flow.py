"""TruthFlow (arXiv:2502.04556) on the residual stream: a correction vector for each query.

There is no h(a), and a follows no v(a): the ODE runs in the space of vectors. A learned flow ẋ = u(x, t) maps a query's
activation x₀ (the last token of the question) at t = 0 to its correction x̂₁ at t = 1, by the midpoint rule on 16
points. Steer: a + T P x̂₁, P the projection on the top k right singular vectors of the stacked corrections, not
centred. T = 1.5 is the published strength, T = 1 one correction. `vector(query)` is P x̂₁. In a model the query is the
last token of each prompt (see `prompt_lengths`), read once, and its vector is added to every steered token; the source
steers positions="all". `steer` alone uses each activation as its own query.

Fit, from pairs with `queries`: x₁ = desired − undesired of a pair, x_t = (1 − t)x₀ + t x₁, and u by the squared
distance to x₁ − x₀, t uniform. u is a linear U-Net, d → d/2 → … → d/16 and back, with 128 sines and cosines of t.
AdamW, 40 epochs, batches of 136; learning rate 1e-4 at a width of 4096, inversely proportional to the width below that
(3e-3 at most), with a warm-up over a tenth of the steps (the source's 100, of 1,000), then a cosine to 0.7 of it.

Differences from the source (its repository is gone):
- Queries and corrections are each centred and scaled, and the flow runs between these. An activation is many times as
  long as a correction: without scaling x₁ − x₀ is almost −x₀, which dominates the loss.
- No BatchNorm: inputs of unit size stay near unit size through so few layers. So the output for a row does not depend
  on other rows of the batch, and there are no running means to keep.
- Residual blocks have one layer and are narrower than d_model; skips are sums, not concatenations, and at full width a
  gate. A d × d block would add half as many numbers as all other layers have, and they are sent to servers.
- Weights are stored in bfloat16, half the bytes; training and inference are in float32.
- Pairs are held out and the best epoch is kept; few pairs are trained on for more than 40 epochs, up to 1,000 steps.

A rectified flow matches the distribution of all x₁; it does not give each query the mean of the corrections that fit
it. What the query does not determine is sampled, and queries whose straight paths cross may exchange their corrections.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Basis, Direction, Samples, Time
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.degeneracy import check_queries
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.flow import Trajectory
from odesteer_tl.flows.networks import Parameters, centred, check_trainable, held_out, random_parameters, train
from odesteer_tl.methods.pointwise import PointwiseMethod
from odesteer_tl.methods.registry import as_needed, register
from odesteer_tl.methods.view import Unit, View
from odesteer_tl.portable.integrate import euler, path
from odesteer_tl.portable.methods import PortableMethod
from odesteer_tl.portable.unet import corrected, correction, unet
from odesteer_tl.remote.payloads import packed

DEPTH, NARROWEST, TIMES = 4, 16, 128
"""Of the U-Net: the number of levels below the full width, their least width, and the size of the embedding of t."""

PUBLISHED_RANK = 20
"""The published k: how many singular vectors of the corrections P keeps."""

HELD_OUT_TIMES = 4
"""How many times t, spread evenly over [0, 1], a held-out pair is evaluated at."""


@dataclass(frozen=True, eq=False)
class TruthFlow(PointwiseMethod):
    """a + T P x̂₁(query): T counts corrections, whatever ‖a‖.

    `layers`: the U-Net, in the order of `unet.unet`. `source`, `scale`: mean and spread of the queries.
    `target`, `unit`: those of the corrections. `basis` [d_model, k], orthonormal: P = basis basisᵀ. `steps`: of the
    midpoint rule.
    """

    view: ClassVar[View] = View(
        "TruthFlow", "none", "P x̂₁(query), one vector per prompt", "1 (15 in the space of vectors)",
        "any", "pairs with queries", "arXiv:2502.04556",
        Unit("corrections", "--T counts corrections, 1.5 as published; look from 0.05 up.", whole=1.0),
    )  # fmt: skip

    layers: tuple[Float[Tensor, "..."], ...]
    source: Direction
    scale: float
    target: Direction
    unit: float
    basis: Basis
    origin: Origin
    steps: int = 15

    speed: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}. For no steering use T=0.")

    @classmethod
    def fit(
        cls,
        acts: ContrastiveActivations,
        *,
        rank: int | None = None,
        epochs: int | None = None,
        batch: int = 136,
        lr: float | None = None,
        validation: float = 0.1,
        patience: int | None = None,
        seed: int = 0,
    ) -> "TruthFlow":
        """Fit u in float32, on the device of the activations; all randomness comes from `seed`.

        `rank=None` is 20 as published, or min(pairs, d_model), the largest possible rank, if that is smaller. `lr=None`
        is 0.4/d_model, at most 3e-3; `epochs=None` is 40, or more up to 1,000 steps for few pairs; `patience=None` is a
        fifth of the epochs. Raises ValueError for activations that are not paired or have no queries, queries that are
        not finite or all the same, a `rank` out of range, too few pairs to hold out `validation` of them, and a U-Net
        that does not fit into the memory.
        """
        queries = _queries(acts)
        acts.check("TruthFlow")
        check_queries(queries)
        d_model = queries.shape[1]
        largest_rank = min(queries.shape)
        rank = min(PUBLISHED_RANK, largest_rank) if rank is None else rank
        if not 1 <= rank <= largest_rank:
            raise ValueError(f"rank is from 1 to min(pairs, d_model) = {largest_rank}, got {rank}.")
        widths = _widths(d_model)
        ways = [*pairwise(widths), *((n, n) for n in widths[1:])]
        check_trainable([*ways, *ways], acts.desired.device, "the U-Net of TruthFlow")
        parts = held_out(acts, validation, seed, "TruthFlow")
        (x0, x1), (held0, held1) = ((_queries(part).float(), _corrections(part)) for part in parts)
        source, scale = centred(x0)
        target, unit = centred(x1)
        rows, held = (((q - source) / scale, (x - target) / unit) for q, x in ((x0, x1), (held0, held1)))
        count = HELD_OUT_TIMES * len(held0)
        times = (torch.arange(count, device=x0.device) + 0.5) / count
        held = (*(column.repeat(HELD_OUT_TIMES, 1) for column in held), times)

        def loss(parameters: Any, z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
            now = z0 + t.unsqueeze(1) * (z1 - z0)
            return (unet(now, t, parameters) - (z1 - z0)).square().mean(1)

        fitted = train(
            _initial_parameters(d_model, torch.Generator().manual_seed(seed)), loss, rows, held,
            lr=min(3e-3, 0.4 / d_model) if lr is None else lr, epochs=epochs, published=40, batch=batch,
            weight_decay=0.01, warmup=0.1, ending=0.7, timed=True, patience=patience, seed=seed,
            name="flow of TruthFlow",
        )  # fmt: skip
        layers = tuple(p.to(torch.bfloat16) for p in fitted.parameters)
        if bool((x1 == x1[0]).all()):
            unit = 0.0  # all corrections are `target`
        return cls(layers, source, scale, target, unit, _top_directions(_corrections(acts), rank), acts.origin)

    @property
    def barrier(self) -> None:
        """None: the flow runs on correction vectors, and has no desired region of activations."""
        return None

    def vector(self, query: Activations) -> Activations:
        """P x̂₁ [*batch, d_model], the correction of each query, in the dtype of `query`; T = 1 adds it once.

        Raises ValueError for another d_model than the one fitted.
        """
        return self.vector_field(query)

    def portable(self) -> PortableMethod:
        """The U-Net, its scaling and the basis, as plain tensors."""
        return self._as_portable(corrected, packed(self._params), answer=correction)

    @property
    def _of_query(self) -> Callable[[Activations], Activations]:
        """In a model the vector of the prompt's last token is added to all steered tokens."""
        return self.vector

    @property
    def _params(self) -> tuple[Any, ...]:
        return self.layers, self.source, self.scale, self.target, self.unit, self.steps, self.basis

    def _move(self, x: Activations, T: Time) -> Activations:
        return corrected(x, T, *self._params)

    def _velocity(self, x: Activations) -> Activations:
        return correction(x, *self._params)

    def _trajectory(self, x: Activations, T: Time) -> Trajectory:
        """The two ends of a straight line; there is no h."""
        return Trajectory(torch.stack(list(path(self._velocity, x, T, euler, 1))), None)


def _queries(acts: ContrastiveActivations) -> Samples:
    """The queries of the pairs. Raises ValueError for activations without pairs or queries."""
    if not acts.paired or acts.queries is None:
        missing = "these carry no queries" if acts.paired else "these are not paired"
        raise ValueError(
            f"TruthFlow is fitted to pairs with their queries, and {missing}: read a desired and an undesired answer "
            "to each query, in the same order, and pass paired=True and queries=[n_pairs, d_model], the activation of "
            "each query's last token."
        )
    bad = (~torch.isfinite(acts.queries)).any(1)
    if bad.any():
        raise ValueError(f"queries hold NaN or inf in {int(bad.sum())} of {len(bad)} rows; drop those pairs first.")
    return acts.queries


def _corrections(acts: ContrastiveActivations) -> Samples:
    """x₁ = desired − undesired of each pair."""
    return (acts.desired.double() - acts.undesired.double()).float()


def _top_directions(corrections: Samples, rank: int) -> Basis:
    """The first right singular vectors of the stacked corrections, largest first; for many rows by eigenvectors."""
    rows = corrections.double()
    if len(rows) < rows.shape[1]:  # so no matrix of d_model × d_model is needed
        return torch.linalg.svd(rows, full_matrices=False).Vh[:rank].T.float().contiguous()
    return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -rank:].flip(1).float().contiguous()


def _widths(d_model: int) -> list[int]:
    """The full width, and the width of every level below it."""
    return [d_model, *(max(NARROWEST, d_model >> k) for k in range(1, DEPTH + 1))]


def _initial_parameters(d_model: int, generator: torch.Generator) -> Parameters:
    """A random U-Net in the order of `unet.unet`; its last level starts at 0, so u is 0 everywhere at first."""
    widths = _widths(d_model)
    parameters = list(random_parameters((TIMES, TIMES), generator))
    for inputs, outputs in (*pairwise(widths), *pairwise(widths[:0:-1])):  # down, and up again to widths[1]
        parameters += [
            *random_parameters((inputs, outputs), generator),
            random_parameters((TIMES, outputs), generator)[0],
        ]
        parameters += random_parameters((outputs, outputs), generator)
    last = ((d_model, widths[1]), (d_model,), (d_model, TIMES), (d_model,))
    return (*parameters, *(torch.zeros(shape, device="cpu") for shape in last))


register(
    TruthFlow,
    row=8,
    example=lambda acts: TruthFlow.fit(acts, rank=4, epochs=20),
    parity={"TruthFlow": lambda at: TruthFlow.fit(as_needed(at.acts(), TruthFlow.view.needs), epochs=100)},
)
