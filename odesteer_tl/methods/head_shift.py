"""HeadShift: ITI in its own form (arXiv:2306.03341), on the heads of one attention layer. `ITI.fit_heads` fits it.

z [n_heads·d_head] is the concatenated outputs of a layer's heads, before the output projection. For each chosen head
h(z) = θᵀz_head + b, a linear probe with ‖θ‖ = 1; v = σθ on the chosen heads and 0 on all others, constant, in one step:
z + T σθ. σ is the standard deviation of the head's activations along θ, so that T is the source's α (15 there).

As in honest_llama: the probes are scikit-learn's logistic regressions on four fifths of the rows, ranked by accuracy on
the rest; θ is taken from all rows if it is the mass-mean shift, from the four fifths if it is the probe's; σ divides by
n, not n − 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Activations, Direction
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.fields import Constant
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import Unit, View
from odesteer_tl.portable.sites import Site, site_name

HeadDirection = Literal["mass_mean", "probe"]
"""The choice of θ: the unit difference of means, or the unit weight of the probe."""

Probe = tuple[Float[Tensor, " d_head"], float, float]
"""Weight, intercept, accuracy."""


@dataclass(frozen=True, eq=False)
class HeadShift(FlowMethod):
    """z + T `shift`, `shift` [n_heads·d_head] = σθ on the chosen `heads` and 0 elsewhere.

    `heads` in ascending order, counted from 0, with the `accuracy` of their probes on the rows held out and the
    `offset` b of their h. T counts in standard deviations; relative_T means T = relative_T·‖z‖ over all heads.
    Raises ValueError where their numbers or shapes do not agree.
    """

    view: ClassVar[View] = View(
        "ITI, by heads", "θᵀz + b for each head", "σθ on the chosen heads of z", "1",
        "any", "both sides", "arXiv:2306.03341",
        Unit("standard deviations", "--T 15 is the published strength; look from 1 to 20."),
    )  # fmt: skip

    shift: Direction
    n_heads: int
    heads: tuple[int, ...]
    accuracy: tuple[float, ...]
    offset: tuple[float, ...]
    origin: Origin

    def __post_init__(self) -> None:
        if self.n_heads < 1 or len(self.shift) % self.n_heads:
            raise ValueError(f"{self.n_heads} heads do not divide a shift of {len(self.shift)} numbers.")
        if not len(self.heads) == len(self.accuracy) == len(self.offset):
            sizes = (len(self.heads), len(self.accuracy), len(self.offset))
            raise ValueError(f"Each chosen head has one accuracy and one offset, got {sizes}.")
        if list(self.heads) != sorted(set(self.heads)) or not set(self.heads) <= set(range(self.n_heads)):
            raise ValueError(f"heads are different indices from 0 to {self.n_heads - 1}, ascending; got {self.heads}.")

    @property
    def barrier(self) -> None:
        """None: each chosen head has its own h, see `head_values`."""
        return None

    @property
    def speed(self) -> float:
        """‖shift‖: T counts standard deviations, not lengths."""
        return float(self.shift.norm())

    @cached_property
    def flow(self) -> Flow:
        return Flow(Constant(self.shift), steps=1)

    @property
    def sigma(self) -> Float[Tensor, " chosen_heads"]:
        """σ of each chosen head."""
        return by_head(self.shift, self.n_heads)[list(self.heads)].norm(dim=-1)

    def head_values(self, z: Activations) -> Float[Tensor, "*batch chosen_heads"]:
        """h of each chosen head: θᵀz_head + b, positive on the desired side of its probe."""
        chosen = list(self.heads)
        theta = torch.nn.functional.normalize(by_head(self.shift, self.n_heads)[chosen], dim=-1).to(z)
        own = by_head(z, self.n_heads)[..., chosen, :]
        offset = torch.tensor(self.offset, dtype=z.dtype, device=z.device)
        return einsum(own, theta, "... head d_head, head d_head -> ... head") + offset


def by_head(z: Float[Tensor, "*batch z"], n_heads: int) -> Float[Tensor, "*batch head d_head"]:
    """The outputs of the heads, which are concatenated in z, as separate rows."""
    return rearrange(z, "... (head d_head) -> ... head d_head", head=n_heads)


def head_shifts(
    acts: Sequence[ContrastiveActivations],
    n_heads: int,
    top_k: int,
    direction: HeadDirection,
    validation: float,
    seed: int,
    C: float,
) -> tuple[HeadShift, ...]:
    """A HeadShift for every layer with chosen heads. See `ITI.fit_heads`, also for the errors."""
    acts = sorted(_checked(list(acts), n_heads, top_k, direction, validation), key=lambda of_layer: of_layer.layer or 0)
    probes = [_probes(of_layer, n_heads, validation, seed, C) for of_layer in acts]
    ranked = sorted(
        ((layer, head) for layer in range(len(acts)) for head in range(n_heads)),
        key=lambda pair: -probes[pair[0]][pair[1]][2],  # by accuracy; the sort is stable, so the first of equals wins
    )[:top_k]
    shifts = []
    for number, of_layer in enumerate(acts):
        heads = tuple(sorted(head for layer, head in ranked if layer == number))
        if heads:
            shifts.append(_shift(of_layer, n_heads, heads, [probes[number][head] for head in heads], direction))
    return tuple(shifts)


def _probes(acts: ContrastiveActivations, n_heads: int, validation: float, seed: int, C: float) -> list[Probe]:
    """The probe of each head: weight and intercept from the rows to fit, accuracy on the rows held out."""
    from sklearn.linear_model import LogisticRegression

    (fit, labels), (held_out, held_out_labels) = (
        (
            by_head(torch.cat([part.desired, part.undesired]).double().cpu(), n_heads),
            [1] * len(part.desired) + [0] * len(part.undesired),
        )
        for part in acts.split(seed, 1 - validation)
    )
    probes = []
    for head in range(n_heads):
        regression: Any = LogisticRegression(C=C, max_iter=1000).fit(fit[:, head].numpy(), labels)
        accuracy = float(regression.score(held_out[:, head].numpy(), held_out_labels))
        probes.append((torch.from_numpy(regression.coef_[0]), float(regression.intercept_[0]), accuracy))
    return probes


def _shift(
    acts: ContrastiveActivations, n_heads: int, heads: tuple[int, ...], probes: list[Probe], direction: HeadDirection
) -> HeadShift:
    desired, undesired = (by_head(side.double().cpu(), n_heads) for side in (acts.desired, acts.undesired))
    shift, offset = torch.zeros(desired.shape[1:], dtype=torch.float64, device="cpu"), []
    for head, (weight, intercept, _) in zip(heads, probes, strict=True):
        high, low = desired[:, head].mean(0), undesired[:, head].mean(0)
        difference, at_zero = (
            (weight, intercept) if direction == "probe" else (high - low, (low @ low - high @ high) / 2)
        )
        size = float(difference.norm()) or 1.0  # a head with equal means has no direction, and no shift
        theta = difference / size
        along = torch.cat([desired[:, head], undesired[:, head]]) @ theta
        shift[head] = along.std(correction=0) * theta
        offset.append(float(at_zero) / size)
    accuracies = tuple(accuracy for _, _, accuracy in probes)
    return HeadShift(
        shift.flatten().float().to(acts.desired.device), n_heads, heads, accuracies, tuple(offset), acts.origin
    )


def _checked(
    acts: list[ContrastiveActivations], n_heads: int, top_k: int, direction: str, validation: float
) -> list[ContrastiveActivations]:
    if not acts:
        raise ValueError('No layers were given: pass ot.collect_layers(model, desired, undesired, layers, site="z").')
    for of_layer in acts:
        if of_layer.layer is None or site_name(of_layer.hook_name) != "z":
            raise ValueError(
                f'Heads are read at z, these were read at {of_layer.hook_name}: pass ot.collect_layers(..., site="z").'
            )
        of_layer.check("ITI.fit_heads", 2)
        if (of_layer.desired.shape, of_layer.undesired.shape, of_layer.paired) != (
            acts[0].desired.shape,
            acts[0].undesired.shape,
            acts[0].paired,
        ) or not _same_groups(of_layer, acts[0]):
            raise ValueError("All layers must hold the same rows, pairs, groups and width: use ot.collect_layers.")
    layers = [of_layer.layer for of_layer in acts]
    if len(set(layers)) < len(layers):
        raise ValueError(f"Each layer may be given once, got {layers}.")
    width = acts[0].desired.shape[1]
    if n_heads < 1 or width % n_heads:
        raise ValueError(f"n_heads={n_heads} does not divide the width of z, {width}: pass n_heads=model.cfg.n_heads.")
    if not 1 <= top_k <= n_heads * len(acts):
        raise ValueError(
            f"top_k is from 1 to {n_heads * len(acts)}, {n_heads} heads in {len(acts)} layers; got {top_k}."
        )
    if direction not in ("mass_mean", "probe"):
        raise ValueError(f'direction is "mass_mean" or "probe", got {direction!r}.')
    if not 0 < validation < 1:
        raise ValueError(f"validation is the share of rows held out, between 0 and 1, got {validation}.")
    return acts


def _same_groups(one: ContrastiveActivations, other: ContrastiveActivations) -> bool:
    if one.groups is None or other.groups is None:
        return one.groups is other.groups
    return all(torch.equal(a, b) for a, b in zip(one.groups, other.groups, strict=True))


def _two_of_four(acts: ContrastiveActivations) -> HeadShift:
    at_z = replace(acts, hook_name=Site(acts.layer or 0, "z").hook_name)
    return head_shifts([at_z], 4, 2, "mass_mean", 0.2, 0, 1.0)[0]


register(HeadShift, example=_two_of_four, parity={})  # "ITI, heads" is its row of the parity table
