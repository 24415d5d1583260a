"""What a fitted method does to held-out activations: does h separate the sides, does it rise along the trajectory, is
the desired region reached, how do norm and direction change? No text is generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from odesteer_tl._shapes import Samples
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.control.diagnostics.record import recorded
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.displacement import displacements, median_displacement, reach
from odesteer_tl.flows.barriers import auc
from odesteer_tl.flows.flow import Trajectory
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import FlowMethod, PointwiseMethod
from odesteer_tl.portable.networks import angle_between
from odesteer_tl.portable.sites import Site

DISPLACEMENT = 0.2
"""The median displacement at which methods are checked; maps and closed loops are checked at T = 1."""

PARTS = (0.25, 0.5, 0.75, 1.0)
"""The shares of T at which h is computed for a method without steps of its own."""


@dataclass(frozen=True)
class Conditions:
    """A method at T on held-out undesired activations; the fields on h are None where the method has none.

    `auc`: of h, held-out desired against undesired. `h_along`: median h along the trajectory. `rising`: the share of
    activations for which h never falls. `inside`: the share with h ≥ 0 at the end. `norm_ratio`: median ‖a(T)‖/‖a‖.
    `angle`: median, in degrees. `displacement`: the median reached; `reached`: whether that is the one asked for.
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
    method = method.to(a.device, a.dtype)  # h is computed by the barrier itself, which casts nothing
    view = getattr(method, "view", None)
    whole = view.T.whole if view is not None and view.T.is_map else None
    T = reach(method, a, displacement)[0] if whole is None else whole
    end = method.steer(a, T=T)
    moved = median_displacement(method, a, T)
    trajectory = trajectory_of(method, a, T)
    h = trajectory.h
    return Conditions(
        T=T,
        displacement=moved,
        reached=whole is not None or moved >= 0.99 * displacement,
        norm_ratio=float((end.norm(dim=1) / a.norm(dim=1)).median()),
        angle=float(angle_between(a, end).rad2deg().median()),
        auc=None if method.barrier is None else auc(method.barrier, held_out.desired.float(), a),
        h_along=None if h is None else tuple(h.median(dim=1).values.tolist()),
        rising=None if h is None else float((~trajectory.chatters).double().mean()),
        inside=None if h is None else float(trajectory.reaches.double().mean()),
    )


def closed_conditions_of(
    method: FeedbackController, model: Any, held_out: Sequence[str], layer: int, positions: Positions = "decoding"
) -> Conditions:
    """Check a closed loop at T = 1 in the model: at the last tokens of held-out undesired texts, at the output of block
    `layer`. Its h is a function of the states at all layers, so the fields on h are None."""
    texts, site = list(held_out), [Site(layer)]
    a = recorded(model, texts, site, positions=positions)[0]
    end = recorded(model, texts, site, method, 1.0, positions=positions)[0]
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


def trajectory_of(method: PointwiseMethod, a: Samples, T: float) -> Trajectory:
    """The trajectory by the method's own steps, or a(sT) at shares s of T where it has one step or none."""
    if isinstance(method, FlowMethod) and method.flow.steps > 1:
        return method.trajectory(a, T)
    points = torch.stack([a, *(method.steer(a, T=part * T) for part in PARTS)])
    return Trajectory(points, None if method.barrier is None else method.barrier.value(points))
