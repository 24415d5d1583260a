"""Networks that are fitted: kept as plain tensors, trained by a plain loop.

A network is its tensors alone, so it is moved, saved and sent like any other part of a method. Its formulas are in
`portable/networks.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, cos, pi
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from odesteer_tl._memory import check_room
from odesteer_tl._progress import bar
from odesteer_tl._shapes import Activations, PerActivation, Samples
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.portable.gradients import GradientFunction
from odesteer_tl.portable.networks import network, network_grad
from odesteer_tl.portable.precision import in_full

Kind = Literal["relu", "gelu"]
"""The activation function between the layers of a network."""

Parameters = tuple[Float[Tensor, "..."], ...]

LEAST_STEPS = 1000
"""The least number of optimiser steps of a fit, however few the samples are."""


@dataclass(frozen=True, eq=False)
class Network:
    """f(a) = Wₙ s(… s(W₁a + b₁) …) + bₙ, one number per activation. Raises ValueError for mismatched layers."""

    weights: tuple[Float[Tensor, "_ _"], ...]
    biases: tuple[Float[Tensor, " _"], ...]
    kind: Kind

    def __post_init__(self) -> None:
        shapes = [tuple(w.shape) for w in self.weights]
        fits = len(shapes) == len(self.biases) > 0 and shapes[-1][0] == 1 and self.kind in ("relu", "gelu")
        fits = fits and all(b.shape == shape[:1] for b, shape in zip(self.biases, shapes, strict=True))
        if not fits or any(low[0] != high[1] for low, high in pairwise(shapes)):
            biases = [tuple(b.shape) for b in self.biases]
            raise ValueError(
                f"A network of {self.kind} needs layers of matching shapes that end in one number: got {shapes}, "
                f"{biases}."
            )

    @classmethod
    def of(cls, parameters: Sequence[Tensor], kind: Kind) -> "Network":
        """The network of (W₁, b₁, W₂, b₂, …)."""
        return cls(tuple(parameters[::2]), tuple(parameters[1::2]), kind)

    def value(self, a: Activations) -> PerActivation:
        with in_full(a.device):
            return network(a, self.weights, self.biases, self.kind)

    def grad(self, a: Activations) -> Activations:
        return self.gradient_function(a)

    @property
    def gradient_function(self) -> GradientFunction:
        """∇f as a plain function and its parameters."""
        return GradientFunction(network_grad, (self.weights, self.biases, self.kind), value=network)

    def of_scaled(self, mean: Float[Tensor, " d_model"], scale: float) -> "Network":
        """The network g with g(a) = f((a − mean)/scale): the scaling goes into the first layer."""
        first = self.weights[0] / scale
        with in_full(mean.device):
            bias = self.biases[0] - first @ mean
        return Network((first, *self.weights[1:]), (bias, *self.biases[1:]), self.kind)

    def times(self, scale: float, plus: float) -> "Network":
        """The network scale·f + plus: the scaling goes into the last layer."""
        last, bias = scale * self.weights[-1], scale * self.biases[-1] + plus
        return Network((*self.weights[:-1], last), (*self.biases[:-1], bias), self.kind)


@dataclass(frozen=True, eq=False)
class NetworkBarrier:
    """h(a) = f(a) − threshold."""

    network: Network
    threshold: float

    def value(self, a: Activations) -> PerActivation:
        return self.network.value(a) - self.threshold

    def grad(self, a: Activations) -> Activations:
        return self.gradient_function(a)

    @property
    def gradient_function(self) -> GradientFunction:
        """∇h as a plain function and its parameters."""
        return self.network.gradient_function.raised(-self.threshold)


@dataclass(frozen=True, eq=False)
class Trained:
    """The parameters of the best epoch, and the held-out loss at the start and after every epoch."""

    parameters: Parameters
    losses: tuple[float, ...]


def random_parameters(widths: Sequence[int], generator: torch.Generator) -> Parameters:
    """Random (W₁, b₁, …) of layers widths[0] → widths[1] → …, uniform on ±1/√(inputs), drawn on the CPU."""
    parameters = []
    for inputs, outputs in pairwise(widths):
        for shape in ((outputs, inputs), (outputs,)):
            parameters.append((2 * torch.rand(shape, generator=generator, device="cpu") - 1) / inputs**0.5)
    return tuple(parameters)


def check_trainable(layers: Sequence[tuple[int, int]], device: torch.device, name: str) -> None:
    """Raise ValueError where `layers` (inputs, outputs) are too large to be trained in the free memory: float32
    weights, their gradients, two moments of the optimiser, the best weights so far, and one copy during a step."""
    numbers = sum(inputs * outputs for inputs, outputs in layers)
    check_room(
        6 * 4 * numbers, device, f"Training the {numbers:,} numbers of {name}",
        "fit ODESteer or RepE, which need no network, or put the activations on a larger device.",
    )  # fmt: skip


def held_out(
    acts: ContrastiveActivations, fraction: float, seed: int, name: str
) -> tuple[ContrastiveActivations, ContrastiveActivations]:
    """Split the rows by `seed` into those to fit and those held out; pairs and groups stay together.

    Raises ValueError where a part would have an empty side; `name` is the method in the message.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation is the share of the rows to hold out, between 0 and 1; got {fraction}.")
    try:
        return acts.split(seed, 1 - fraction)
    except ValueError as error:
        sizes = f"{len(acts.desired)} desired and {len(acts.undesired)} undesired"
        raise ValueError(
            f"{name} needs rows to fit and rows to hold out (validation={fraction}) on both sides; {sizes} "
            f"activations do not give both: {error} Collect more texts."
        ) from error


def centred(x: Samples) -> tuple[Float[Tensor, " d_model"], float]:
    """The mean of the rows, and their spread about it as one number (1 where they do not vary): a network's units."""
    mean = x.mean(0)
    spread = float((x - mean).square().mean().sqrt())
    return mean, spread if spread > 0 else 1.0


def train(
    start: Parameters,
    loss: Callable[..., Tensor],
    rows: tuple[Shaped[Tensor, "n_fit ..."], ...],
    held: tuple[Shaped[Tensor, "n_held ..."], ...],
    *,
    lr: float,
    epochs: int | None,
    batch: int,
    published: int = 100,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    ending: float = 1.0,
    timed: bool = False,
    patience: int | None = None,
    seed: int = 0,
    name: str = "network",
) -> Trained:
    """Minimise the mean of loss(parameters, *columns) over the rows by AdamW, from `start`.

    The learning rate rises linearly over the share `warmup` of all steps, and then falls along a cosine to the share
    `ending` of itself. With `timed=True` the loss takes one more column, times in [0, 1) drawn anew for every batch;
    `held` brings its own times. Training stops after `patience` epochs without a lower loss on `held` (default: a fifth
    of the epochs, at least 2), and the best epoch is kept. `epochs=None` is the number `published`, or more where that
    would be fewer than 1,000 steps. Rows are shuffled by `seed`; the global generators are not used. A progress bar
    appears after 2 s. Raises ValueError for a number of epochs or rows per batch below 1, and where the loss is not
    finite.
    """
    if batch < 1 or (epochs is not None and epochs < 1):
        raise ValueError(f"Training needs at least one epoch and one row per batch, got {epochs=}, {batch=}.")
    n, device = len(rows[0]), rows[0].device
    per_epoch = ceil(n / batch)
    epochs = max(published, ceil(LEAST_STEPS / per_epoch)) if epochs is None else epochs
    patience = max(2, epochs // 5) if patience is None else patience
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), in_full(device):
        parameters = tuple(p.detach().to(device, copy=True).requires_grad_() for p in start)
        fused = device.type in ("cpu", "cuda")
        optimiser = torch.optim.AdamW(list(parameters), lr=lr, weight_decay=weight_decay, fused=fused)
        warmup_steps = max(1, round(warmup * epochs * per_epoch))
        losses, step = [_held_out_loss(loss, parameters, held, batch)], 0
        best = [p.detach().clone() for p in parameters]
        for _ in bar(range(epochs), label=f"Fitting the {name}"):
            for chosen in torch.randperm(n, generator=generator, device="cpu").to(device).split(batch):
                step += 1
                decay_steps = max(1, epochs * per_epoch - warmup_steps)
                decay = (1 - cos(pi * max(0.0, (step - warmup_steps) / decay_steps))) / 2
                for group in optimiser.param_groups:
                    group["lr"] = lr * min(1.0, step / warmup_steps) * (1 - (1 - ending) * decay)
                columns = [column[chosen] for column in rows]
                if timed:
                    columns.append(torch.rand(len(chosen), generator=generator, device="cpu").to(device))
                optimiser.zero_grad()
                loss(parameters, *columns).mean().backward()
                optimiser.step()
            losses.append(_held_out_loss(loss, parameters, held, batch))
            if losses[-1] < min(losses[:-1]):
                best = [p.detach().clone() for p in parameters]
            elif len(losses) - 1 - losses.index(min(losses)) >= patience:
                break
    return Trained(tuple(best), tuple(losses))


def _held_out_loss(loss: Callable[..., Tensor], parameters: Parameters, rows: tuple[Tensor, ...], batch: int) -> float:
    with torch.no_grad():
        parts = [loss(parameters, *columns) for columns in zip(*(c.split(max(batch, 256)) for c in rows), strict=True)]
        mean_loss = float(torch.cat(parts).double().mean())
    if not mean_loss < float("inf"):
        raise ValueError(
            f"The loss on the held-out rows is {mean_loss}: the learning rate is too high for these activations: pass "
            "a smaller lr."
        )
    return mean_loss
