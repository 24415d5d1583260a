"""How well a score ranks desired above undesired texts that it was not fitted on, with an error that knows the units.

The AUC is P(score(x₊) > score(x₋)) within the folds. Its error is that of DeLong et al. (1988), summed by unit
(Obuchowski 1997): pairs, groups and near-duplicates vary together and count once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.evaluation.separation import placements

PerText = Float[Tensor, " texts"]
Folds = list[tuple[Tensor, Tensor]]
"""Masks of all texts: which are fitted on, and which are held out."""
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Ranking:
    """The held-out `scores` and `placements` of all texts, desired first: the share of the other side's texts of its
    fold that a text is on the right side of."""

    name: str
    scores: PerText
    placements: PerText
    n_desired: int
    units: tuple[int, ...]

    @property
    def auc(self) -> float:
        """The mean of both sides' placements."""
        return float(sum(side.mean() for side in self._sides())) / 2

    @property
    def error(self) -> float:
        """The standard error of the AUC over units."""
        return self._error(self._sides())

    def minus(self, other: "Ranking") -> tuple[float, float]:
        """The difference of the AUCs on the same texts, and its standard error."""
        sides = tuple(a - b for a, b in zip(self._sides(), other._sides(), strict=True))
        return self.auc - other.auc, self._error(sides)

    def _sides(self) -> tuple[Tensor, ...]:
        return self.placements[: self.n_desired], self.placements[self.n_desired :]

    def _error(self, sides: tuple[Tensor, ...]) -> float:
        parts = torch.cat([(side - side.mean()) / len(side) for side in sides])
        names, number = torch.tensor(self.units, device="cpu").unique(return_inverse=True)
        sums = torch.zeros(len(names), dtype=parts.dtype, device="cpu").index_add(0, number, parts)
        return float((sums.square().sum() * len(names) / max(len(names) - 1, 1)).sqrt())


def folds_of_units(n_desired: int, units: Sequence[int], seed: int) -> Folds:
    """Five folds in which no unit is cut, with the sides in proportion. Raises ValueError for too few units."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [1] * n_desired + [0] * (len(units) - n_desired)
    counts = [len({unit for unit, label in zip(units, labels, strict=True) if label == side}) for side in (1, 0)]
    folds: Folds = []
    if min(counts) >= FOLDS:
        for _, share in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels, units):
            held = torch.zeros(len(units), dtype=torch.bool, device="cpu")
            held[torch.from_numpy(share)] = True
            folds.append((~held, held))
    parts = [mask[side] for pair in folds for mask in pair for side in (slice(n_desired), slice(n_desired, None))]
    if not folds or not all(bool(part.any()) for part in parts):
        raise ValueError(
            f"Only {counts[0]} desired and {counts[1]} undesired texts are independent, and {FOLDS} folds need both "
            "sides in each: add texts, or drop repeated ones."
        )
    return folds


def ranking(
    name: str, score: Callable[[Tensor, Tensor], Tensor], folds: Folds, n_desired: int, units: Sequence[int]
) -> Ranking:
    """`score(fit, held)`: the scores of the held-out texts, in order, after a fit on others; both are masks."""
    scores, placed = (torch.full((len(units),), torch.nan, dtype=torch.float64, device="cpu") for _ in range(2))
    for fit, held in folds:
        own = score(fit, held).double().cpu()
        if not bool(torch.isfinite(own).all()):
            raise ValueError(f"{name} gives NaN or inf on held-out texts: check the model, or give another method=.")
        count = int(held[:n_desired].sum())
        scores[held], placed[held] = own, torch.cat(placements(own[:count], own[count:]))
    return Ranking(name, scores, placed, n_desired, tuple(units))
