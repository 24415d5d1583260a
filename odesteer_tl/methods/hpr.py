"""HPR (arXiv:2409.10053) on the residual stream: turn undesired activations across a hyperplane, by a learned angle.

h(a) = θᵀa, a hyperplane through the origin; v(a) = γ₁(a) p where h(a) < 0, else 0, with p in span{a, θ}, of length
‖a‖, at a right angle to a: a moves along ∇h on the sphere, at the learned speed of its starting point.

Steer: where θᵀa < 0, reflect a_H = a − 2θ(θᵀa)/‖θ‖², γ₂ = ∠(a, a_H), and return
[sin(γ) a_H + sin(γ₂ − γ) a]/sin γ₂ with γ = T γ₁(a): a turned by γ towards a_H, of the same norm. T = 1 is the
published rotation, T between 0 and 1 a part of the arc; the norm is kept for any T. Desired activations are returned
unchanged, and so are those opposite to θ up to rounding, for which a and θ span no plane.

Fit, from pairs: θ by the logistic loss of the probe σ(θᵀa), without a bias; γ₁ = π·sigmoid(f(a)), f four linear layers
of halving width with GELU, by the squared distance to the angle between an undesired activation and its desired pair,
0 for desired ones. Both losses are added: AdamW, learning rate 5e-4 with a warm-up over 5 % of the steps, 5 epochs,
batches of 16. Differences from the source: activations are scaled for the training, and the scaling is folded into the
first layers; θ starts at 0; pairs are held out and the best epoch is kept; few pairs are trained on for more than 5
epochs, up to 1,000 steps. The source edits the five layers with the best probes; this edits one, as the ODESteer paper
compares it (whose code for HPR is not released).
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from odesteer_tl._shapes import Activations, PerActivation, Samples, Time
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear
from odesteer_tl.flows.networks import Network, centred, check_trainable, held_out, random_parameters, train
from odesteer_tl.methods.pointwise import PointwiseMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import FRACTION, View
from odesteer_tl.portable.methods import PortableMethod
from odesteer_tl.portable.networks import angle_between, network, turned, turning_speed
from odesteer_tl.remote.payloads import packed

NARROWEST = 8
"""The least width of a layer of the angle network."""


@dataclass(frozen=True, eq=False)
class HPR(PointwiseMethod):
    """a turned by T γ₁(a) towards its reflection in θᵀa = 0, where θᵀa < 0: T counts in learned angles."""

    view: ClassVar[View] = View(
        "HPR", "θᵀa", "γ(a)·(a turned a right angle towards θ), where h < 0", "1, along an arc", "‖a‖", "pairs",
        "arXiv:2409.10053", FRACTION,
    )  # fmt: skip

    barrier: LogRatioBarrier
    angles: Network
    origin: Origin

    speed: ClassVar[float | None] = None

    @classmethod
    def fit(
        cls,
        acts: ContrastiveActivations,
        *,
        epochs: int | None = None,
        batch: int = 16,
        lr: float = 5e-4,
        warmup: float = 0.05,
        validation: float = 0.2,
        patience: int | None = None,
        seed: int = 0,
    ) -> "HPR":
        """Fit θ and the angles in float32, on the device of the activations; all randomness comes from `seed`.

        `epochs=None` is 5, or what makes 1,000 steps of few pairs; `patience=None` a fifth of the epochs, at least 2.
        Raises ValueError for activations that are not paired, too few pairs to hold out `validation` of them, and
        a network that does not fit into the memory.
        """
        if not acts.paired:
            raise ValueError(
                "HPR learns the angle between the two activations of a pair, and these are not paired: read desired "
                "and undesired answers to the same queries, in one order, and pass paired=True."
            )
        acts.check("HPR")
        d_model = acts.desired.shape[1]
        widths = [d_model, *(max(NARROWEST, d_model >> k) for k in (1, 2, 3)), 1]
        check_trainable(list(pairwise(widths)), acts.desired.device, "the angle network of HPR")
        rows, held = (_rows(part) for part in held_out(acts, validation, seed, "HPR"))
        scale = float(rows[0].square().mean().sqrt()) or 1.0
        rows, held = (rows[0] / scale, *rows[1:]), (held[0] / scale, *held[1:])
        mean, spread = centred(rows[0])
        generator = torch.Generator().manual_seed(seed)

        def loss(parameters: Any, x: Tensor, desired: Tensor, target: Tensor) -> Tensor:
            angle = math.pi * torch.sigmoid(network((x - mean) / spread, parameters[1::2], parameters[2::2], "gelu"))
            probe = torch.nn.functional.binary_cross_entropy_with_logits(x @ parameters[0], desired, reduction="none")
            return probe + (angle - target).square()

        fitted = train(
            (torch.zeros(d_model, device="cpu"), *random_parameters(widths, generator)), loss, rows, held,
            lr=lr, epochs=epochs, published=5, batch=batch, weight_decay=0.01, warmup=warmup, patience=patience,
            seed=seed, name="angles of HPR",
        )  # fmt: skip
        theta, *layers = fitted.parameters
        angles = Network.of(layers, "gelu").of_scaled(mean * scale, spread * scale)
        return cls(LogRatioBarrier(Linear(normalize=False), theta / scale, 0.0), angles, acts.origin)

    def angle(self, a: Activations) -> PerActivation:
        """γ₁(a) in (0, π), by which undesired activations are turned at T = 1."""
        return self._computed(a, lambda method, x: math.pi * torch.sigmoid(method.angles.value(x))).to(a.dtype)

    def portable(self) -> PortableMethod:
        """θ and the angle network, as plain tensors."""
        return self._as_portable(turned, packed(self._parts))

    @property
    def _parts(self) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        return self.barrier.weight, self.angles.weights, self.angles.biases

    def _move(self, x: Activations, T: Time) -> Activations:
        return turned(x, T, *self._parts)

    def _velocity(self, x: Activations) -> Activations:
        return turning_speed(x, *self._parts)


def _rows(acts: ContrastiveActivations) -> tuple[Samples, Tensor, Tensor]:
    """Activations, label (1 desired, 0 undesired) and angle to turn, undesired rows first."""
    desired, undesired = acts.desired.float(), acts.undesired.float()
    target = angle_between(undesired, desired)
    label = torch.cat([torch.zeros_like(target), torch.ones_like(target)])
    return torch.cat([undesired, desired]), label, torch.cat([target, torch.zeros_like(target)])


def _with_open_gate(acts: ContrastiveActivations) -> HPR:
    """HPR for the parity table: its plane is turned so that all activations are on the undesired side, and its angles
    are nearer to 90°. With a closed gate or small angles a mistake would not show."""
    method = HPR.fit(replace(acts, paired=True))
    plane = -(acts.desired.mean(0) + acts.undesired.mean(0))
    network = method.angles
    weights, biases = ((*parts[:-1], 0.1 * parts[-1]) for parts in (network.weights, network.biases))
    angles = replace(network, weights=weights, biases=biases)
    return replace(method, barrier=replace(method.barrier, weight=plane), angles=angles)


register(
    HPR,
    row=5,
    example=lambda acts: HPR.fit(acts, epochs=8),
    parity={"HPR": lambda at: _with_open_gate(at.acts())},
)
