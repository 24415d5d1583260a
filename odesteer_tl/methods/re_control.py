"""RE-Control (arXiv:2406.05954) on the residual stream: climb a learned value function.

h(a) = V(a) − ε; v = ∇V, not normalised, by n Euler steps of size η: a ← a + η ∇V(a). So T = nη, and the T of the
source's README is 30 (n = 30, η = 1). T scales with 1/V: values in larger units need a smaller T.

V is a network d_model → width → width → 1 with ReLU. With `rewards` V is fitted to them by the squared error, and ε is
the value that best separates desired from undesired. Without rewards, an adaptation, V is fitted to the labels by the
logistic loss. V is then a logit, and with ε = log(n₊/n₋) h is a log density ratio, 0 where both sides are equally
likely. `trained_on` tells the two apart. The source fits V at the final normalised state, to the rewards of whole
responses and by temporal differences to the tokens before their ends. This is one layer and one activation per text, as
the ODESteer paper compares it (its code for RE-Control is not released). Adam, 100 epochs, batches of 512, learning
rate 1e-4 at the source's width of 4096, inversely proportional to the width below that (3e-3 at most). Differences from
the source: activations and rewards are scaled for the training, and the scaling is folded into the first and the last
layer; rows are held out and the best epoch is kept; few rows are trained on for more than 100 epochs, up to 1,000
steps.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from odesteer_tl._shapes import PerActivation
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.degeneracy import rounding_of
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.fields import Gradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.flows.networks import (
    Network,
    NetworkBarrier,
    centred,
    check_trainable,
    held_out,
    random_parameters,
    train,
)
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import Unit, View
from odesteer_tl.portable.networks import network

DEFAULT_WIDTH = 1024
"""The default width of V, or d_model if that is smaller."""


@dataclass(frozen=True, eq=False)
class REControl(FlowMethod):
    """ȧ = ∇V, V a value network, in `steps` Euler steps; `trained_on`: whether V was fitted to rewards or labels."""

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
        _ = self.flow  # so a wrong number of steps fails here, not during a generation

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
        """Fit V to `acts.rewards`, or without rewards to the labels, in float32 on the device of the activations.

        `width=None` is d_model, at most 1024; `lr=None` is 0.4/width, at most 3e-3; `epochs=None` is 100, or more up to
        1,000 steps for few rows; `patience=None` is a fifth of the epochs. All randomness comes from `seed`. Raises
        ValueError for too few rows to hold out `validation` of each side, and for rewards that are not finite or are
        all the same to the rounding of their dtype.
        """
        acts.check("REControl")
        parts = held_out(acts, validation, seed, "REControl")
        samples = [torch.cat([part.desired, part.undesired]).float() for part in parts]
        targets, unit, center = _targets(acts, parts)
        mean, spread = centred(samples[0])
        width = min(len(mean), DEFAULT_WIDTH) if width is None else width
        if width < 1:
            raise ValueError(f"A value network needs a width of at least 1, got {width}.")
        check_trainable([(len(mean), width), (width, width)], mean.device, "the value network of RE-Control")
        generator = torch.Generator().manual_seed(seed)
        of_labels = acts.rewards is None

        def loss(parameters: Any, x: Tensor, target: Tensor) -> Tensor:
            value = network(x, parameters[::2], parameters[1::2], "relu")
            if of_labels:
                return torch.nn.functional.binary_cross_entropy_with_logits(value, target, reduction="none")
            return (value - target).square()

        train_rows, held = (((x - mean) / spread, target) for x, target in zip(samples, targets, strict=True))
        fitted = train(
            random_parameters([len(mean), width, width, 1], generator), loss, train_rows, held, published=100,
            epochs=epochs, batch=batch, lr=min(3e-3, 0.4 / width) if lr is None else lr, patience=patience, seed=seed,
            name="value of RE-Control",
        )  # fmt: skip
        value = Network.of(fitted.parameters, "relu").of_scaled(mean, spread).times(unit, center)
        if of_labels:
            threshold = math.log(len(acts.desired) / len(acts.undesired))
        else:
            threshold = _best_threshold(value.value(acts.desired.float()), value.value(acts.undesired.float()))
        return cls(NetworkBarrier(value, threshold), acts.origin, "labels" if of_labels else "rewards", steps)

    @property
    def usual_T(self) -> float:
        """The number of steps, each of size 1."""
        return float(self.steps)

    @cached_property
    def flow(self) -> Flow:
        return Flow(Gradient(self.barrier), steps=self.steps)


def _targets(
    acts: ContrastiveActivations, parts: tuple[ContrastiveActivations, ContrastiveActivations]
) -> tuple[list[Tensor], float, float]:
    """The targets of V for the fitted and the held-out rows, with the scale and the mean that they were divided by."""
    device = acts.desired.device
    if acts.rewards is None:
        labels = [(p.desired.new_ones(len(p.desired)), p.desired.new_zeros(len(p.undesired))) for p in parts]
        return [torch.cat(of_part).float() for of_part in labels], 1.0, 0.0
    rewards = [torch.cat([side.double() for side in p.rewards or ()]) for p in parts]
    rounding = rounding_of(*(side.dtype for side in acts.rewards))
    unit, mean = float(rewards[0].std(correction=0)), float(rewards[0].mean())
    if not all(bool(torch.isfinite(of_part).all()) for of_part in rewards) or unit <= rounding * abs(mean):
        raise ValueError(
            "rewards need finite numbers that are not all the same; pass rewards=None to fit V to the labels."
        )
    return [((of_part - mean) / unit).float().to(device) for of_part in rewards], unit, mean


def _best_threshold(high: PerActivation, low: PerActivation) -> float:
    """The threshold with the largest difference between the shares of `high` and of `low` above it: halfway between two
    values."""
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
