"""Paths of activations, and the barrier that they climb."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Direction, Samples
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.flow import Trajectory
from odesteer_tl.plots.barriers import barrier_of, named

if TYPE_CHECKING:
    import matplotlib.figure

Plane = Float[Tensor, "2 d_model"]
FINE = 61
"""Points of the grid along either axis."""
LOG_RATIO = "h = log p₊/p₋, nats"
"""What h is in the methods of this package; a barrier of the user's own may be something else."""


def along_path(
    paths: Mapping[str, Trajectory] | Trajectory, many: int = 40, *, label: str = LOG_RATIO
) -> "matplotlib.figure.Figure":
    """h against t/T: the median over activations, and thin lines for the first `many`. `paths`: what
    `method.trajectory` returned, or several by name; `label`: what h is, with its unit. Raises ValueError for a
    trajectory without h."""
    from odesteer_tl.plots.picture import INK, looks, picture

    with picture() as (figure, (axes,)):
        for (name, path), look in zip(named(paths, "h").items(), looks(), strict=False):
            if path.h is None:
                raise ValueError(f"The trajectory of {name} has no h: its method has no barrier.")
            h = path.h.detach().cpu().reshape(len(path.h), -1).numpy()
            time = np.linspace(0, 1, len(h))
            axes.plot(time, h[:, :many], color=look["color"], alpha=0.15, lw=0.8)
            axes.plot(time, np.median(h, axis=1), label=f"{name}, median", **look)
        axes.axhline(0, color=INK, lw=1, ls=":")
        axes.set(xlabel="t / T", ylabel=label)
        axes.legend()
    return figure


def level_sets(
    h: Any,
    paths: Mapping[str, Trajectory] | Trajectory,
    acts: ContrastiveActivations | None = None,
    *,
    plane: Plane | None = None,
    many: int = 40,
    label: str = LOG_RATIO,
) -> "matplotlib.figure.Figure":
    """Level sets of h on a plane, and paths as they look on it, a panel for each of `paths`.

    `h`: a method or barrier. The plane goes through the mean start of the first path; x is the mean displacement a(T) −
    a(0), y the direction in which displacements differ most (where all are the same, that in which the starts differ
    most); or `plane`, two orthonormal rows of your own. Colours and contours are h on the plane; the dots at the ends
    of paths bear the colour of their true h, also where they lie off the plane. `acts`: both sides, as small marks.
    `many`: how many paths at most. `label`: what h is, with its unit. Raises ValueError for a method without a barrier
    and for rows of another width.
    """
    from odesteer_tl.plots.picture import DESIRED, HEIGHTS, INK, UNDESIRED, picture

    barrier, by_name = barrier_of(h), named(paths, "paths")
    walked = {name: _points(path)[:, :many] for name, path in by_name.items()}
    first = next(iter(walked.values()))
    centre = first[0].mean(0)
    axes_of_plane = plane_of(first) if plane is None else plane.double().cpu()
    flat = {name: (points - centre) @ axes_of_plane.T for name, points in walked.items()}
    seen = torch.cat([points.flatten(0, 1) for points in flat.values()])
    marks = []
    if acts is not None:
        sides = ((acts.desired, DESIRED, "+"), (acts.undesired, UNDESIRED, "x"))
        marks = [((side.double().cpu() - centre) @ axes_of_plane.T, *look) for side, *look in sides]
        seen = torch.cat([seen, *(side for side, *_ in marks)])
    (x, y), heights = grid_of(barrier, centre, axes_of_plane, seen)
    ends = {name: barrier.value(points[-1]).cpu() for name, points in walked.items()}
    most = float(torch.cat([heights.flatten(), *ends.values()]).abs().quantile(0.98)) or 1.0
    x, y, levels = x.numpy(), y.numpy(), heights.numpy().T
    with picture(len(walked), width=4.6, height=4.2, sharey=True) as (figure, panels):
        shown: Any = None
        for axes, (name, points) in zip(panels, flat.items(), strict=True):
            shown = axes.pcolormesh(x, y, levels, cmap=HEIGHTS, vmin=-most, vmax=most, shading="auto", alpha=0.8,
                                    rasterized=True)  # fmt: skip
            lines = axes.contour(x, y, levels, levels=9, colors=INK, linewidths=0.5, alpha=0.7)
            axes.clabel(lines, fontsize=6, fmt="%.2g")
            for side, colour, marker in marks:
                axes.plot(*side.numpy().T, marker, color=colour, ms=3, alpha=0.35, zorder=2)
            axes.plot(*points.numpy().transpose(2, 0, 1), color=INK, lw=0.9, zorder=3)
            axes.scatter(
                *points[-1].numpy().T, c=ends[name].numpy(), cmap=HEIGHTS, vmin=-most, vmax=most, s=22,
                edgecolors=INK, linewidths=0.7, zorder=4,
            )  # fmt: skip
            axes.set(title=name, xlabel="mean displacement" if plane is None else "first axis of the plane")
        panels[0].set(ylabel="across it" if plane is None else "second axis of the plane")
        figure.colorbar(shown, ax=list(panels), label=label, shrink=0.85)
        figure.supxlabel("units of the residual stream", fontsize=8)
    return figure


def _points(path: Trajectory) -> Float[Tensor, "points n d_model"]:
    """The activations of a path, or of the path of one activation, on the CPU in float64."""
    steps, d_model = len(path.activations), path.activations.shape[-1]
    return path.activations.detach().to("cpu", torch.float64).reshape(steps, -1, d_model)


def plane_of(points: Float[Tensor, "times n d_model"]) -> Plane:
    """The mean displacement, and the direction across it in which displacements, or else starts, differ most."""
    moved, starts = points[-1] - points[0], points[0] - points[0].mean(0)
    along: Direction = _unit(moved.mean(0))
    across = moved - moved.mean(0)
    if float(across.norm()) < 1e-3 * float(moved.norm()):
        across = starts
    across = across - (across @ along).unsqueeze(1) * along
    main: Direction = torch.linalg.svd(across.double(), full_matrices=False).Vh[0].to(points.dtype)
    return torch.stack([along, _unit(main - (main @ along) * along)])


def grid_of(
    barrier: Any, centre: Direction, plane: Plane, seen: Float[Tensor, "n 2"]
) -> tuple[tuple[Tensor, Tensor], Float[Tensor, "x y"]]:
    """The coordinates of a grid around all that is seen, and h at centre + x·plane₀ + y·plane₁."""
    low, high = seen.amin(0), seen.amax(0)
    room = 0.08 * (high - low).clamp_min(1e-6)
    x, y = (
        torch.linspace(float(a), float(b), FINE, dtype=seen.dtype, device=seen.device)
        for a, b in zip(low - room, high + room, strict=True)
    )
    at: Samples = centre + torch.cartesian_prod(x, y) @ plane
    return (x, y), barrier.value(at).detach().cpu().float().reshape(FINE, FINE)


def _unit(direction: Direction) -> Direction:
    return direction / direction.norm().clamp_min(1e-12)
