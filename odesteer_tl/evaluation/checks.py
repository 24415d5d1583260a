"""What a fitted method does to activations that no fit has seen: does h tell the sides apart, does it rise on the way,
is the goal reached, what becomes of length and direction? Nothing is generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from odesteer_tl._shapes import Samples
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.control.diagnostics.record import watched
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.strength import displacements, median_displacement, reach, strengths_tried
from odesteer_tl.flows.barriers import auc
from odesteer_tl.flows.flow import Trajectory
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import FlowMethod, PointwiseMethod
from odesteer_tl.portable.networks import angle_between
from odesteer_tl.portable.sites import Site

DISPLACEMENT = 0.2
"""The median displacement at which methods are checked; maps and closed loops where they lead, at T = 1."""

PARTS = (0.25, 0.5, 0.75, 1.0)
"""Where h is looked at on the way of a method that has no steps of its own."""


@dataclass(frozen=True)
class Conditions:
    """A method at T on held-out undesired activations; what concerns h is None where the method has none.

    `auc`: of h, held-out desired against undesired. `h_along`: its medians on the way, start to end. `rising`: share
    for which h never falls on the way. `inside`: share with h ≥ 0 at the end. `norm_ratio`: median ‖a(T)‖/‖a‖. `angle`:
    median, in degrees. `reached`: whether the displacement asked for can be had; `displacement` is the median found.
    """

    T: float
    displacement: float
    reached: bool
    norm_ratio: float
    angle: float
    auc: float | None
    h_along: tuple[float, ...] | None
    rising: float | None
    inside: float | None


def conditions_of(
    method: PointwiseMethod, held_out: ContrastiveActivations, displacement: float = DISPLACEMENT
) -> Conditions:
    """Check `method` at the T that moves held-out undesired activations by `displacement`, or a map at T = 1."""
    a = held_out.undesired.float()
    method = method.to(a.device, a.dtype)  # h is asked of the barrier itself, which casts nothing
    T = reach(method, a, displacement)[0] if (tried := strengths_tried(method)) is None else tried[-1]
    end = method.steer(a, T=T)
    found = median_displacement(method, a, T)
    way = way_of(method, a, T)
    h = way.h
    return Conditions(
        T=T,
        displacement=found,
        reached=tried is not None or found >= 0.99 * displacement,
        norm_ratio=float((end.norm(dim=1) / a.norm(dim=1)).median()),
        angle=float(angle_between(a, end).rad2deg().median()),
        auc=None if method.barrier is None else auc(method.barrier, held_out.desired.float(), a),
        h_along=None if h is None else tuple(h.median(dim=1).values.tolist()),
        rising=None if h is None else float((~way.chatters).double().mean()),
        inside=None if h is None else float(way.reaches.double().mean()),
    )


def closed_conditions_of(
    method: FeedbackController, model: Any, held_out: Sequence[str], layer: int, positions: Positions = "decoding"
) -> Conditions:
    """Check a closed loop at T = 1 in the model: the last tokens of held-out undesired texts, where they leave block
    `layer`. Its h is of the state at every layer, so that there is none at one."""
    texts, site = list(held_out), [Site(layer)]
    a = watched(model, texts, site, positions=positions)[0]
    end = watched(model, texts, site, method, 1.0, positions=positions)[0]
    return Conditions(
        T=1.0,
        displacement=float(displacements(a, end).median()),
        reached=True,
        norm_ratio=float((end.norm(dim=1) / a.norm(dim=1)).median()),
        angle=float(angle_between(a, end).rad2deg().median()),
        auc=None,
        h_along=None,
        rising=None,
        inside=None,
    )


def way_of(method: PointwiseMethod, a: Samples, T: float) -> Trajectory:
    """The method's own steps, or a(sT) at parts s of the way where it has one step or none."""
    if isinstance(method, FlowMethod) and method.flow.steps > 1:
        return method.trajectory(a, T)
    points = torch.stack([a, *(method.steer(a, T=part * T) for part in PARTS)])
    return Trajectory(points, None if method.barrier is None else method.barrier.value(points))
