"""How well barriers separate, and whether their number means what it says."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.separation import Z95, Separation
from odesteer_tl.flows.barriers import Barrier, with_grad
from odesteer_tl.remote.payloads import moved

if TYPE_CHECKING:
    import matplotlib.figure

BEYOND = 6.0
"""Log odds beyond this, 400 to 1, are drawn at the edge."""


def separation(found: Sequence[Separation]) -> "matplotlib.figure.Figure":
    """Held-out AUC of barriers by layer with 95 % intervals: a panel per reading position, a line per barrier.

    Raises ValueError where nothing was found, and for activations whose layer is not known.
    """
    from odesteer_tl.plots.picture import INK, looks, picture

    if not found or any(one.layer is None for one in found):
        raise ValueError("separation draws AUCs by layer: pass what `separations` found at sites whose layer is known.")
    positions = list(dict.fromkeys(one.position for one in found))
    names = list(dict.fromkeys(one.name for one in found))
    with picture(len(positions), width=4.6, sharey=True) as (figure, panels):
        for axes, position in zip(panels, positions, strict=True):
            for number, (name, look) in enumerate(zip(names, looks(), strict=False)):
                own = [one for one in found if (one.name, one.position) == (name, position)]
                shift = 0.12 * (number - (len(names) - 1) / 2)  # intervals beside one another
                axes.errorbar(
                    [(one.layer or 0) + shift for one in own], [one.auc for one in own],
                    [Z95 * one.error for one in own], label=name, capsize=2, elinewidth=1, **look,
                )  # fmt: skip
            axes.axhline(0.5, color=INK, lw=1, ls=":")
            axes.set(xlabel="layer (output of the block)", title="" if position is None else f"read at: {position}")
            axes.set_xticks(sorted({one.layer or 0 for one in found}))
        panels[0].set(ylabel="held-out AUC of h, with 95 %")
        panels[-1].legend()
    return figure


def log_odds(
    barriers: Mapping[str, Any] | Any, acts: ContrastiveActivations, bins: int = 8
) -> "matplotlib.figure.Figure":
    """Whether h is the log odds that it claims to be: rows of `acts`, which should be held out, are sorted by h into
    `bins` of equal size; of each the log odds of being desired, corrected to equal sides, are drawn against the mean h,
    with 95 % intervals. A log density ratio lies on the diagonal. `barriers`: a method or barrier, or several by name.

    Raises ValueError for a method without a barrier.
    """
    from odesteer_tl.plots.picture import INK, looks, picture

    with picture() as (figure, (axes,)):
        axes.plot([-BEYOND, BEYOND], [-BEYOND, BEYOND], color=INK, lw=1, ls=":", label="h as it claims to be")
        widest = 1.0
        for (name, one), look in zip(named(barriers).items(), looks(), strict=False):
            x, y, low, high = odds_by_bin(barrier_of(one), acts, bins)
            spread = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            x = [min(max(h, -BEYOND), BEYOND) for h in x]
            axes.errorbar(x, y, spread, label=name, capsize=2, elinewidth=1, **look)
            widest = max(widest, *map(abs, x), *map(abs, y))
        edge = min(BEYOND, 1.15 * widest)
        axes.set(xlim=(-edge, edge), ylim=(-edge, edge))
        axes.set(xlabel="h = log p₊/p₋, mean of a bin, nats", ylabel="log odds of being desired, nats")
        axes.legend()
    return figure


def odds_by_bin(
    barrier: Barrier, acts: ContrastiveActivations, bins: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Of each bin the mean h, the log odds of being desired corrected by log(n₋/n₊), and their 95 % interval; half a
    row is added to either side, so that a bin of one side has odds too (Haldane 1956)."""
    sides = (side.detach().to("cpu", torch.float64) for side in (acts.desired, acts.undesired))
    h = torch.cat([barrier.value(side) for side in sides])
    is_desired = torch.arange(len(h), device=h.device) < len(acts.desired)
    prior = math.log(len(acts.undesired) / len(acts.desired))
    rows: tuple[list[float], ...] = ([], [], [], [])
    for part in h.argsort().tensor_split(bins):
        high = float(is_desired[part].sum()) + 0.5
        low = len(part) - high + 1
        odds, error = math.log(high / low) + prior, (1 / high + 1 / low) ** 0.5
        for row, number in zip(
            rows, (float(h[part].mean()), odds, odds - Z95 * error, odds + Z95 * error), strict=True
        ):
            row.append(number)
    return rows[0], rows[1], rows[2], rows[3]


def named(things: Mapping[str, Any] | Any, name: str = "") -> Mapping[str, Any]:
    """Things by name: as given, or one by its class. Raises ValueError for none."""
    if isinstance(things, Mapping) and not things:
        raise ValueError("There is nothing to draw: the dict is empty.")
    return things if isinstance(things, Mapping) else {name or type(things).__name__: things}


def barrier_of(thing: Any) -> Barrier:
    """The barrier of a method, or a barrier, with `grad`, on the CPU in float64. Raises ValueError for a method without
    one."""
    own = getattr(thing, "barrier", thing)
    if own is None:
        raise ValueError(f"A {type(thing).__name__} has no barrier h, so that there is nothing to draw.")
    return with_grad(moved(own, device="cpu", dtype=torch.float64))
