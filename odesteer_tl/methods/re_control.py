"""RE-Control (arXiv:2406.05954) on the residual stream: climb a learned value function.

h(a) = V(a) − ε; v = ∇V, not normalised, by n Euler steps of size η: a ← a + η ∇V(a), so that T = nη and the T of the
source's README is 30 (n = 30, η = 1). T counts in units of V's slope: values in larger units need a smaller T.

V is a network d_model → width → width → 1 with ReLU. Where the activations carry `rewards`, V is fitted to them by the
squared error, and ε is the value that best parts desired from undesired. Else, an adaptation, V is fitted to the labels
by the logistic loss, so that V is a logit, and with ε = log(n₊/n₋) h is a log density ratio, 0 where both sides are as
likely. `trained_on` says which it was. The source fits V to the rewards of whole responses, and by differences in time
to the tokens on the way there, at the final normalised state; this is one layer and one activation per text, as the
ODESteer paper compares it (its code for RE-Control is not released). Adam, 100 epochs, batches of 512, learning rate
1e-4 at the source's width of 4096, larger in inverse proportion for narrower ones (3e-3 at most). Beside the source:
activations and rewards are scaled for the training, which the first and the last layer take up; rows are held out and
the best epoch is kept; few rows are seen more than 100 times, for 1,000 steps.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from odesteer_tl._shapes import PerActivation
from odesteer_tl.data.activations import ContrastiveActivations, Origin
from odesteer_tl.flows.fields import Gradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.flows.training import Network, NetworkBarrier, centred, check_trainable, drawn, held_out, trained
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import Unit, View
from odesteer_tl.portable.networks import network

WIDEST = 1024
"""The width of V unless given, or d_model where that is less."""


@dataclass(frozen=True, eq=False)
class REControl(FlowMethod):
    """ȧ = ∇V, V a value network, in `steps` Euler steps; `trained_on` says what V was fitted to."""

    view: ClassVar[View] = View(
        "RE-Control", "V(a) − ε, a value network", "∇V", "30",
        "any", "both sides", "arXiv:2406.05954",
        Unit("steps of ascent", "--T counts steps of gradient ascent, 30 as published; look from 1 up.", whole=30.0),
    )  # fmt: skip

    barrier: NetworkBarrier
    origin: Origin
    trained_on: Literal["rewards", "labels"]
    steps: int = 30

    speed: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if self.trained_on not in ("rewards", "labels"):
            raise ValueError(f'V was trained on "rewards" or "labels", got {self.trained_on!r}.')
        _ = self.flow  # a wrong number of steps fails here, not in the middle of a generation

    @classmethod
    def fit(
        cls,
        acts: ContrastiveActivations,
        *,
        steps: int = 30,
        width: int | None = None,
        epochs: int | None = None,
        batch: int = 512,
        lr: float | None = None,
        validation: float = 0.2,
        patience: int | None = None,
        seed: int = 0,
    ) -> "REControl":
        """Fit V to `acts.rewards`, or to the labels where there are none, in float32, on the device of the activations.

        `width=None` is d_model, at most 1024; `lr=None` is 0.4/width, at most 3e-3; `epochs=None` is 100, or what makes
        1,000 steps of few rows; `patience=None` a fifth of the epochs. All randomness comes from `seed`. Raises
        ValueError for too few rows to hold out `validation` of either side, and rewards not finite or all the same.
        """
        acts.check("REControl")
        parts = held_out(acts, validation, seed, "REControl")
        samples = [torch.cat([part.desired, part.undesired]).float() for part in parts]
        goals, unit, middle = _goals(acts, parts)
        mean, spread = centred(samples[0])
        width = min(len(mean), WIDEST) if width is None else width
        if width < 1:
            raise ValueError(f"A value network needs a width of at least 1, got {width}.")
        check_trainable([(len(mean), width), (width, width)], mean.device, "the value network of RE-Control")
        generator = torch.Generator().manual_seed(seed)
        of_labels = acts.rewards is None

        def loss(parameters: Any, x: Tensor, goal: Tensor) -> Tensor:
            value = network(x, parameters[::2], parameters[1::2], "relu")
            if of_labels:
                return torch.nn.functional.binary_cross_entropy_with_logits(value, goal, reduction="none")
            return (value - goal).square()

        rows, held = (((x - mean) / spread, goal) for x, goal in zip(samples, goals, strict=True))
        found = trained(
            drawn([len(mean), width, width, 1], generator), loss, rows, held, published=100, epochs=epochs, batch=batch,
            lr=min(3e-3, 0.4 / width) if lr is None else lr, patience=patience, seed=seed, name="value of RE-Control",
        )  # fmt: skip
        value = Network.of(found.parameters, "relu").of_scaled(mean, spread).times(unit, middle)
        if of_labels:
            threshold = math.log(len(acts.desired) / len(acts.undesired))
        else:
            threshold = _parting(value.value(acts.desired.float()), value.value(acts.undesired.float()))
        return cls(NetworkBarrier(value, threshold), acts.origin, "labels" if of_labels else "rewards", steps)

    @property
    def usual_T(self) -> float:
        """Steps of 1."""
        return float(self.steps)

    @cached_property
    def flow(self) -> Flow:
        return Flow(Gradient(self.barrier), steps=self.steps)


def _goals(
    acts: ContrastiveActivations, parts: tuple[ContrastiveActivations, ContrastiveActivations]
) -> tuple[list[Tensor], float, float]:
    """What V is fitted to, for the rows fitted and held out, and the unit and the zero of V in it."""
    device = acts.desired.device
    if acts.rewards is None:
        return (
            [torch.cat([torch.ones(len(p.desired)), torch.zeros(len(p.undesired))]).to(device) for p in parts],
            1.0,
            0.0,
        )
    rewards = [torch.cat([side.double() for side in p.rewards or ()]) for p in parts]
    unit, middle = float(rewards[0].std(correction=0)), float(rewards[0].mean())
    if not all(bool(torch.isfinite(each).all()) for each in rewards) or unit <= 1e-12 * abs(middle):
        raise ValueError(
            "rewards need finite numbers that are not all the same; drop them (rewards=None) to fit V to the labels."
        )
    return [((each - middle) / unit).float().to(device) for each in rewards], unit, middle


def _parting(high: PerActivation, low: PerActivation) -> float:
    """The number above which lies the largest share of `high` less the share of `low`: halfway between two values."""
    values = torch.cat([high, low]).double().sort().values
    cuts = (values[1:] + values[:-1]) / 2
    below = [torch.searchsorted(side.double().sort().values, cuts) / len(side) for side in (high, low)]
    return float(cuts[(below[1] - below[0]).argmax()])


register(
    REControl,
    row=6,
    example=lambda acts: REControl.fit(acts, steps=10, epochs=60),
    parity={"RE-Control": lambda at: REControl.fit(at.acts())},
)
