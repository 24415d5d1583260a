"""The held-out h of a method: at a place, and after a fit on a share of the texts."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.data_check.rankings import Folds, Ranking, ranking
from odesteer_tl.evaluation.separation import h_of

SHARES = (0.25, 0.5, 1.0)
"""Of the texts that a fold is fitted on: the points of the learning curve."""
Fit = Callable[[ContrastiveActivations], object]


def h_ranking(name: str, acts: ContrastiveActivations, fit: Fit, folds: Folds, units: Sequence[int]) -> Ranking:
    """The ranking by h, fitted anew in every fold."""
    n = len(acts.desired)
    rows = torch.cat([acts.desired, acts.undesired])

    def score(chosen: Tensor, held: Tensor) -> Tensor:
        h = h_of("The method", fit(acts._take(chosen[:n], chosen[n:])))
        return h.value(rows[held.to(rows.device)].double())

    return ranking(name, score, folds, n, units)


def learning_curve(
    whole: Ranking, acts: ContrastiveActivations, fit: Fit, folds: Folds, units: Sequence[int], seed: int
) -> list[Ranking]:
    """The rankings after fits on `SHARES` of the texts; `whole` is that after a fit on all of them."""
    curve = []
    for share in SHARES[:-1]:
        thinned = [(_part(chosen, whole.n_desired, units, share, seed), held) for chosen, held in folds]
        curve.append(h_ranking(f"{share:.0%} of the texts", acts, fit, thinned, units))
    return [*curve, whole]


def _part(chosen: Tensor, n_desired: int, units: Sequence[int], share: float, seed: int) -> Tensor:
    """That share of each side's chosen texts, unit by unit in an order drawn by the seed: pairs stay together, and a
    larger share holds the smaller one."""
    drawn = torch.rand(len(units), generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    key = drawn[torch.tensor(units, device="cpu")]  # a unit's number is that of its first text
    part = torch.zeros_like(chosen)
    for start, stop in ((0, n_desired), (n_desired, len(units))):
        rows = chosen[start:stop].nonzero().flatten() + start
        part[rows[key[rows].argsort(stable=True)[: math.ceil(share * len(rows))]]] = True
    return part
