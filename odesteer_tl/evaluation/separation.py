"""How well a barrier tells the two sides apart on rows that it was not fitted on: AUC by folds, with an interval.

    acts = ot.collect_layers(model, desired, undesired, range(12))
    found = separations(acts, {"difference of means": ot.CAA.fit, "ODESteer": ot.ODESteer.fit})
    ot.plots.separation(found)                                         # AUC with 95 % intervals by layer

The AUC is P(h(a₊) > h(a₋)). The placement of a held-out desired row is the share of the undesired rows of its fold that
lie below it, that of an undesired row the share of desired rows above it. The mean of either side's placements is the
AUC, and their spread gives its standard error (DeLong et al. 1988), also of the difference between two barriers on the
same rows, which is much smaller than the two errors suggest. Pairs vary together and are counted as one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._progress import bar
from odesteer_tl._shapes import Position
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import Barrier, with_grad
from odesteer_tl.flows.grid_search import folds_of
from odesteer_tl.remote.payloads import moved

Z95 = 1.96
"""Standard errors on either side that make an interval of 95 %."""
Fits = Mapping[str, Callable[[ContrastiveActivations], Any]]
"""By name: what makes a barrier, or a method that has one, of activations."""


@dataclass(frozen=True, eq=False)
class Separation:
    """The held-out placements of one barrier at one site, in the order of the rows; `paired` rows vary together."""

    name: str
    layer: int | None
    position: Position | None
    desired: Float[Tensor, " n_desired"]
    undesired: Float[Tensor, " n_undesired"]
    paired: bool

    @property
    def auc(self) -> float:
        """The mean over the folds, weighted by their rows."""
        return float(self.desired.mean() + self.undesired.mean()) / 2

    @property
    def error(self) -> float:
        """The standard error of the AUC over rows, or over pairs; how the fit varies with its rows is not in it."""
        return _error(self.desired, self.undesired, self.paired)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, within [0, 1]."""
        return max(0.0, self.auc - Z95 * self.error), min(1.0, self.auc + Z95 * self.error)

    def minus(self, other: "Separation") -> tuple[float, float]:
        """The difference of two AUCs on the same rows, and its standard error. Raises ValueError for other rows."""
        own, others = ((len(one.desired), len(one.undesired), one.paired) for one in (self, other))
        if own != others:
            raise ValueError(
                "Only separations of the same rows can be compared: pass both fits to one call of separations."
            )
        error = _error(self.desired - other.desired, self.undesired - other.undesired, self.paired)
        return self.auc - other.auc, error


def separations(
    acts: ContrastiveActivations | Sequence[ContrastiveActivations],
    fits: Fits,
    *,
    folds: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Separation]:
    """A `Separation` for every one of `acts` and `fits`, in this order; `fits` as in {"linear": ot.ITI.fit}.

    Each fit sees the rows outside a fold and is judged within it, so that a fit that chooses (`ot.tune`) chooses anew
    in every fold. The folds are `flows.grid_search.folds_of`: pairs stay together, and all fits see the same ones.
    Raises ValueError for activations with groups, as `position="all"` and "random:3" give them, for a fit without a
    barrier, and as `folds_of` and the fits do.
    """
    sites = [acts] if isinstance(acts, ContrastiveActivations) else list(acts)
    found = []
    for site in bar(sites, label="Separating", progress=progress):
        parts = folds_of(_numbered(site), folds, seed)
        found += [_separation(site, parts, name, fit) for name, fit in fits.items()]
    return found


def _separation(site: ContrastiveActivations, parts: Any, name: str, fit: Callable[..., Any]) -> Separation:
    high, low = (torch.empty(len(side), dtype=torch.float64, device="cpu") for side in (site.desired, site.undesired))
    for rows, held in parts:
        numbers, first = held.groups, 0 if site.paired else len(site.desired)
        fitted = fit(replace(rows, groups=None))
        h = h_of(name, fitted)
        up, down = h.value(held.desired.double()), h.value(held.undesired.double())
        of_up, of_down = placements(up, down)
        high[numbers[0]], low[numbers[1] - first] = of_up.cpu(), of_down.cpu()
    return Separation(name, site.layer, site.position, high, low, site.paired)


def placements(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the other side that each score is on the right side of, ties by half; their mean is the AUC."""
    wins = (up.unsqueeze(1) > down).double() + (up.unsqueeze(1) == down).double() / 2
    return wins.mean(1), wins.mean(0)


def h_of(name: str, fitted: Any) -> Barrier:
    """The barrier of a method, or the barrier itself, in float64. Raises ValueError for a method without one."""
    barrier = getattr(fitted, "barrier", fitted)
    if barrier is None:
        raise ValueError(
            f"{name} has no barrier h, so that it ranks nothing: leave it out, or give a method with an h."
        )
    return with_grad(moved(barrier, dtype=torch.float64))


def _numbered(acts: ContrastiveActivations) -> ContrastiveActivations:
    """The same rows, each with its number as its group, so that folds can be put together again."""
    if acts.groups is not None:
        raise ValueError(
            "Rows of one group are not independent, and their interval would be too small: read one activation a text, "
            'position="last" or "mean", without groups.'
        )
    first, second = (torch.arange(len(side), device="cpu") for side in (acts.desired, acts.undesired))
    return replace(acts, groups=(first, second if acts.paired else len(first) + second))


def _error(desired: Tensor, undesired: Tensor, paired: bool) -> float:
    if paired:
        return float((desired + undesired).std() / len(desired) ** 0.5)
    return float((desired.var() / len(desired) + undesired.var() / len(undesired)) ** 0.5)
