"""Tuning: choose the features and the C of a log ratio by cross-validated AUC instead of the paper's values.

A polynomial log ratio has three free parameters: (γ, c₀, C) and (sγ, s·c₀, C/s^degree) give the same h. Its curvature
depends on the degree, γ/c₀ and the regularisation C·(γ + c₀)^degree. So the default grid keeps c₀ = 1 and varies the
rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch
from jaxtyping import Int
from torch import Tensor

from odesteer_tl._progress import bar
from odesteer_tl._shapes import Desired, Samples, Undesired
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import LogRatioBarrier, auc
from odesteer_tl.flows.features import FeatureMap, Polynomial, Recipe, fit_to_sides
from odesteer_tl.remote.payloads import moved

DEFAULT_CANDIDATES = tuple(Polynomial(degree, gamma) for degree in (2, 3) for gamma in (0.1, 1.0, 10.0))
"""Degree 2, then 3, each with γ = 0.1, 1, 10 at c₀ = 1: the paper's features first, then more curved ones."""


@dataclass(frozen=True)
class Trial:
    """One candidate, with the AUC of its h on the held-out rows of each fold."""

    features: Recipe
    C: float
    aucs: tuple[float, ...]

    @property
    def auc(self) -> float:
        """The mean over the folds."""
        return fmean(self.aucs)

    @property
    def sd(self) -> float:
        """The sample standard deviation over the folds."""
        return stdev(self.aucs)


@dataclass(frozen=True)
class Tuned:
    """The choice of `tune`, and all candidates in the order tried: by features, then by C.

    `auc` is optimistic, as the best of many: evaluate the method on texts that were not used here.
    """

    features: Recipe
    C: float
    auc: float
    trials: tuple[Trial, ...]

    def trial(self, features: Recipe, C: float) -> Trial:
        """The trial of a candidate. Raises KeyError for one that was not tried."""
        return {(trial.features, trial.C): trial for trial in self.trials}[features, C]


@dataclass(frozen=True, eq=False)
class _FittedOnce:
    """A recipe that is fitted at its first use and kept: φ does not depend on C, and landmarks are expensive."""

    recipe: Recipe
    maps: list[FeatureMap] = field(default_factory=list)

    def fit(self, samples: Samples) -> FeatureMap:
        return self.recipe.fit(samples)

    def fit_sides(self, desired: Desired, undesired: Undesired) -> FeatureMap:
        if not self.maps:
            self.maps.append(fit_to_sides(self.recipe, desired, undesired))
        return self.maps[0]


def tune(
    acts: ContrastiveActivations,
    features: Sequence[Recipe] = DEFAULT_CANDIDATES,
    Cs: Sequence[float | int] = (0.1, 1, 10, 100),
    folds: int = 5,
    seed: int = 0,
) -> Tuned:
    """The features and C whose log ratio h ranks held-out activations best: mean over folds of P(h(a₊) > h(a₋)).

    The largest mean AUC is chosen, and of equal ones the first in the order of `trials`, so list the simpler ones
    first. All candidates use the same `folds_of(acts, folds, seed)`; recipes are fitted to the rows that are not held
    out. The global generators are not used. `features=[Linear()]` tunes C alone. Warns as `LogRatioBarrier.fit`. Raises
    ValueError where there are no candidates, a C is not positive, the sides are the same, and as `folds_of`.
    """
    if len(features) == 0 or len(Cs) == 0:
        raise ValueError(f"tune needs at least one of features and one of Cs, got {len(features)} and {len(Cs)}.")
    if not all(0 < C < float("inf") for C in Cs):
        raise ValueError(f"Cs are weights of the log-loss, positive and finite; got {tuple(Cs)}.")
    acts.check("tune")
    parts, trials = folds_of(acts, folds, seed), []
    for recipe in bar(features, label="Tuning"):
        recipes = [_FittedOnce(recipe) for _ in parts]
        for C in map(float, Cs):
            aucs = []
            for (fit, held), fitted_once in zip(parts, recipes, strict=True):
                barrier = moved(LogRatioBarrier.fit(fit, fitted_once, C=C), dtype=torch.float64)
                aucs.append(auc(barrier, held.desired.double(), held.undesired.double()))
            trials.append(Trial(recipe, C, tuple(aucs)))
    best = max(trials, key=lambda trial: trial.auc)  # the first of equal ones
    return Tuned(best.features, best.C, best.auc, tuple(trials))


def folds_of(
    acts: ContrastiveActivations, folds: int = 5, seed: int = 0
) -> list[tuple[ContrastiveActivations, ContrastiveActivations]]:
    """Split the rows at random into `folds` equal shares; for each share, (all other rows, the share): fit, held out.

    Pairs stay together, and so do the rows of a group. Each share has the two sides in the proportion of all rows, as
    far as groups allow (scikit-learn's StratifiedKFold and StratifiedGroupKFold). Raises ValueError for fewer than two
    folds, too few rows or groups to give each fold both sides, and pairs whose members carry different groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    sizes, groups = (len(acts.desired), len(acts.undesired)), _group_ids(acts)
    units = sizes if groups is None else tuple(len(side.unique()) for side in groups)
    message = (
        f"{folds=} must be at least 2, and each fold needs desired and undesired rows of its own: of {sizes} rows "
    )
    message += (
        f"{units} are independent, as a pair or group counts once. Pass fewer folds or another seed, or collect more."
    )
    if not 2 <= folds <= min(units):
        raise ValueError(message)
    labels = [1] * sizes[0] + [0] * sizes[1]
    splitter, ids = (StratifiedKFold, None) if groups is None else (StratifiedGroupKFold, torch.cat(groups).tolist())
    parts = []
    for _, share in splitter(folds, shuffle=True, random_state=seed).split(labels, labels, ids):
        none_held = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
        held = none_held.index_fill(0, torch.from_numpy(share), True).split(sizes)
        if any(bool(mask.all()) or not bool(mask.any()) for mask in held):
            raise ValueError(message)  # groups so uneven that scikit-learn leaves a side out
        parts.append((acts._take(*(~mask for mask in held)), acts._take(*held)))
    return parts


def _group_ids(acts: ContrastiveActivations) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]] | None:
    """Per side an id per row; rows of one id stay together. None where rows are independent."""
    alone = torch.arange(len(acts.desired), device="cpu")
    if acts.groups is None:
        return (alone, alone) if acts.paired else None
    if acts.paired and not torch.equal(*acts.groups):
        raise ValueError("The two members of a pair carry different groups: give each pair one group.")
    return acts.groups
