"""Laws of separation: scikit-learn's AUC on the same folds, the spread of draws, pairs, and what is refused."""

from dataclasses import replace

import pytest
import torch
from instances import planted
from sklearn.metrics import roc_auc_score

import odesteer_tl as ot
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.separation import separations
from odesteer_tl.flows.barriers import mean_difference
from odesteer_tl.flows.grid_search import folds_of


class Along:
    """h(a) = a₀, which needs no fit."""

    def value(self, a: torch.Tensor) -> torch.Tensor:
        return a[..., 0]


def drawn(n: int, seed: int, shared: float = 0.0) -> ContrastiveActivations:
    """Sides a standard deviation apart along a₀; of pairs, the part `shared` of a₀'s variance is the same."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    both = torch.randn(n, generator=generator, dtype=torch.float64)
    sides[:, :, 0] = (1 - shared) ** 0.5 * sides[:, :, 0] + shared**0.5 * both
    sides[0, :, 0] += 1
    return ContrastiveActivations(*sides, paired=shared > 0)


@pytest.mark.parametrize("paired", [False, True])
def test_the_auc_is_scikit_learns_over_the_same_folds(paired):
    acts = replace(planted(50, 50), paired=True) if paired else planted(60, 45)
    (found,) = separations(acts, {"means": mean_difference})
    areas, rows = [], []
    for fit, held in folds_of(replace(acts, groups=numbered(acts)), 5, 0):
        direction = fit.desired.double().mean(0) - fit.undesired.double().mean(0)
        h = torch.cat([held.desired, held.undesired]).double() @ direction
        areas.append(roc_auc_score([1] * len(held.desired) + [0] * len(held.undesired), h.numpy()))
        rows.append((len(held.desired) / len(acts.desired) + len(held.undesired) / len(acts.undesired)) / 2)
    assert found.auc == pytest.approx(sum(a * r for a, r in zip(areas, rows, strict=True)), abs=1e-6)


def numbered(acts):
    first, second = torch.arange(len(acts.desired)), torch.arange(len(acts.undesired))
    return first, second if acts.paired else len(first) + second


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_the_error_is_the_spread_of_the_auc_over_draws(shared):
    """Also of pairs, whose members vary together: as if they were independent, their error would be twice too large."""
    found = [separations(drawn(80, seed, shared), {"a": lambda acts: Along()}, folds=2)[0] for seed in range(200)]
    spread = float(torch.tensor([one.auc for one in found]).std())
    stated = sum(one.error for one in found) / len(found)
    assert stated == pytest.approx(spread, rel=0.15)
    covered = sum(one.interval[0] <= AREA[shared] <= one.interval[1] for one in found) / len(found)
    assert covered >= 0.9


AREA = {0.0: 0.7602, 0.8: 0.7602}
"""P(a₊ > a₋) = Φ(1/√2): members of different pairs are independent, whatever is shared within one."""


def test_the_difference_of_equal_fits_is_exactly_nothing_and_other_rows_are_refused():
    first, second = separations(planted(), {"one": mean_difference, "two": mean_difference})
    assert first.minus(second) == (0.0, 0.0)
    (other,) = separations(planted(50, 50), {"one": mean_difference})
    with pytest.raises(ValueError, match="same rows"):
        first.minus(other)


def test_a_difference_is_known_better_than_either_auc():
    better, worse = separations(planted(200, 200), {"ODESteer": ot.ODESteer.fit, "CAA": ot.CAA.fit})
    assert better.minus(worse)[1] < 0.7 * (better.error**2 + worse.error**2) ** 0.5


def test_a_fit_never_sees_the_rows_that_judge_it():
    """Labels that say nothing: a fit judged on its own rows would be right far more often than half of the time."""
    acts = ContrastiveActivations(*torch.randn(2, 60, 40, generator=torch.Generator().manual_seed(0)))
    (found,) = separations(acts, {"ITI": ot.ITI.fit})
    assert found.interval[0] < 0.5 < found.auc + 3 * found.error


def test_what_has_no_barrier_and_rows_of_one_group_are_refused():
    with pytest.raises(ValueError, match="no barrier"):
        separations(planted(), {"chance": lambda acts: ot.RandomDirection.fit(acts)})
    groups = torch.arange(60) // 2, 60 + torch.arange(45) // 2
    with pytest.raises(ValueError, match="without groups"):
        separations(replace(planted(), groups=groups), {"means": mean_difference})


def test_sites_and_fits_keep_their_order():
    sites = [replace(planted(), layer=layer, hook_name=None, position="mean") for layer in (2, 5)]
    found = separations(sites, {"a": mean_difference, "b": ot.ITI.fit})
    assert [(one.layer, one.name, one.position) for one in found] == [
        (2, "a", "mean"), (2, "b", "mean"), (5, "a", "mean"), (5, "b", "mean"),
    ]  # fmt: skip
