"""Closed loops over the layers: whether they track, how linear the blocks are, and numbers by layer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from odesteer_tl.control import Bound, Linearity, Tracking
from odesteer_tl.plots.barriers import named

if TYPE_CHECKING:
    import matplotlib.figure

ENTERS = "layer (what enters the block)"


def tracking(found: Mapping[str, Tracking] | Tracking, feature: int = 0) -> "matplotlib.figure.Figure":
    """One panel per loop: the feature β = vᵀz by layer, open and closed, mean and 10–90 % over the texts, and its
    set-point β*. In the last panel what is left of the open loop's mean |β − β*|, closed over open: 1 is no better than
    no loop. `found`: what `set_point_tracking` returned, or several by name; `feature`: which, of several.

    Raises ValueError for an unknown feature.
    """
    from odesteer_tl.plots.picture import COLOURS, INK, looks, picture

    by_name = named(found, "closed loop")
    for name, one in by_name.items():
        if not 0 <= feature < one.goals.shape[1]:
            raise ValueError(f"{name} has {one.goals.shape[1]} features; feature={feature} is none of them.")
    with picture(len(by_name) + 1, width=3.9) as (figure, panels):
        for axes, (name, one) in zip(panels, by_name.items(), strict=False):
            for loop, beta, colour, marker in (
                ("open", one.open, COLOURS[1], "s"),
                ("closed", one.closed, COLOURS[0], "o"),
            ):
                values = beta[:, :, feature].float()
                axes.plot(one.layers, values.mean(1), color=colour, marker=marker, label=f"β, {loop} loop")
                low, high = values.quantile(0.1, 1), values.quantile(0.9, 1)
                axes.fill_between(one.layers, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(one.layers, one.goals[:, feature], color=INK, ls="--", label="set-point β*")
            axes.set(title=name, xlabel=ENTERS, ylabel="feature β = vᵀz")
            axes.legend()
        last = panels[-1]
        for (name, one), look in zip(by_name.items(), looks(), strict=False):
            before, after = (error[:, feature] for error in one.errors)
            last.plot(one.layers, after / before, label=name, **look)
        last.axhline(1, color=INK, lw=1, ls=":")
        last.set(
            title="what is left of the error", xlabel=ENTERS, ylabel="mean |β − β*|, closed / open", ylim=(0, None)
        )
        last.legend()
    return figure


def linearity(found: Linearity) -> "matplotlib.figure.Figure":
    """Left, how alike the Jacobians of a block are for different prompts, of J and of J − I, by layer. Right, how far
    A δz is from what the block does to δz, relative, by layer: a line per length of δz for the prompt's own Jacobian,
    dashed for the mean one at the shortest. `found`: what `local_linearity` returned."""
    from odesteer_tl.plots.picture import INK, looks, picture

    with picture(2, width=4.6) as (figure, (alike, errors)):
        for (name, values), look in zip(
            (("J", found.similarity), ("J − I", found.own_similarity)), looks(), strict=False
        ):
            alike.plot(found.layers, values, label=name, **look)
        alike.set(xlabel="layer", ylabel="similarity between prompts, 0 to 1", ylim=(0, 1.02))
        for number, (radius, look) in enumerate(zip(found.radii, looks(), strict=False)):
            errors.plot(found.layers, found.own_error[:, number], label=f"own J, {radius:g}‖z‖", **look)
        shortest = min(range(len(found.radii)), key=lambda number: found.radii[number])
        errors.plot(
            found.layers, found.mean_error[:, shortest], color=INK, ls="--",
            label=f"mean J, {found.radii[shortest]:g}‖z‖",
        )  # fmt: skip
        errors.set(xlabel="layer", ylabel="error of A δz, relative, by ‖δz‖", yscale="log")
        alike.legend()
        errors.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def bound(found: Bound) -> "matplotlib.figure.Figure":
    """Means over the texts, by layer, in the lengths of the weights P: the error of the loop, its bound, and the bound
    without the drift, which is none. `found`: what `tracking_bound` returned."""
    from odesteer_tl.plots.picture import looks, picture

    with picture() as (figure, (axes,)):
        parts = (("‖δz‖", found.errors), ("bound", found.bound), ("without the drift", found.published))
        for (name, values), look in zip(parts, looks(), strict=False):
            mean = values.mean(1)
            axes.plot(found.layers, mean.where(mean > 0, torch.nan), label=name, **look)  # 0 has no logarithm
        axes.set(xlabel=ENTERS, ylabel="length in the weights P", yscale="log")
        axes.legend()
    return figure


def by_layer(
    values: Mapping[str, Any] | Any, layers: Sequence[int], label: str, xlabel: str = ENTERS, *, log: bool = False
) -> "matplotlib.figure.Figure":
    """Numbers by layer: `values` [layers], or several by name. `label` says what they are, with their unit; `log`: on a
    logarithmic axis. Raises ValueError for another number of values than of layers."""
    from odesteer_tl.plots.picture import INK, looks, picture

    by_name = {name: torch.as_tensor(one, device="cpu").detach().double() for name, one in named(values, label).items()}
    for name, one in by_name.items():
        if one.shape != (len(layers),):
            raise ValueError(f"{name} is {tuple(one.shape)}; {len(layers)} layers need as many numbers.")
    with picture() as (figure, (axes,)):
        for (name, one), look in zip(by_name.items(), looks(), strict=False):
            axes.plot(layers, one, label=name, **look)
        if log:
            axes.set(yscale="log")
        else:
            axes.axhline(0, color=INK, lw=1, ls=":")
        axes.set(xlabel=xlabel, ylabel=label)
        axes.legend()
    return figure
