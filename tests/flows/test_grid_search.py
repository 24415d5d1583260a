"""Laws of tuning: the AUC of scikit-learn's own folds written out, no pair or group parted, planted problems."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from instances import planted, without_shape_checks
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

import odesteer_tl.flows.grid_search
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import LogRatioBarrier, auc
from odesteer_tl.flows.features import Linear, Polynomial
from odesteer_tl.flows.grid_search import DEFAULT_CANDIDATES, folds_of, tune


def grouped(acts: ContrastiveActivations, n_groups: int = 15) -> ContrastiveActivations:
    """Groups that hold rows of both sides, of several sizes."""
    sides = (acts.desired, acts.undesired)
    ids = tuple((torch.arange(len(side)) ** 2) % 31 % n_groups for side in sides)
    return replace(acts, groups=ids)


def kinds() -> dict[str, ContrastiveActivations]:
    even = planted(50, 50)
    by_fours = torch.arange(50) // 4
    return {
        "alone": planted(60, 45),
        "paired": replace(even, paired=True),
        "grouped": grouped(planted(60, 45)),
        "paired-grouped": replace(even, paired=True, groups=(by_fours, by_fours)),
    }


def xor(n: int = 150, seed: int = 0) -> ContrastiveActivations:
    """Two bits, equal on the desired side and opposite on the other, beside an offset that all rows share.

    No linear h sees it. The offset makes all directions alike, as those of a language model are, so that a weakly
    curved kernel under a strong penalty does not see it either.
    """
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (2, n, 2), generator=generator) * 2.0 - 1
    bits[0, :, 1], bits[1, :, 1] = bits[0, :, 0], -bits[1, :, 0]
    a = 0.3 * torch.randn(2, n, 16, generator=generator)
    a[:, :, :2] += bits
    a[:, :, 2] += 4.0
    return ContrastiveActivations(a[0], a[1])


def shifted(n: int, seed: int) -> ContrastiveActivations:
    """Two unit Gaussians a shift apart: the true h is linear in the activations."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(2, n, 16, generator=generator) + 1.0
    a[0, :, :4] += 1.0
    return ContrastiveActivations(a[0], a[1])


KERNELS = [(1, 1.0, 1.0), (2, 0.1, 1.0), (2, 3.0, 0.5), (3, 2.0, 0.5)]


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_auc_is_that_of_cross_validation_by_scikit_learn(kind, kernel):
    """Oracle: Normalizer, Nystroem with every row a landmark, LogisticRegression and roc_auc_score, fold by fold.

    With the two C in turn, so that each meets every kind of rows and every kernel.
    """
    (degree, gamma, coef0), acts, seed = kernel, kinds()[kind], 3
    C = (0.3, 10.0)[(KERNELS.index(kernel) + list(kinds()).index(kind)) % 2]
    rows = torch.cat([acts.desired, acts.undesired]).double().numpy()
    labels = np.repeat([1, 0], [len(acts.desired), len(acts.undesired)])
    if kind == "alone":
        parts = StratifiedKFold(5, shuffle=True, random_state=seed).split(rows, labels)
    else:
        ids = np.tile(np.arange(50), 2) if kind == "paired" else torch.cat(acts.groups).numpy()
        parts = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(rows, labels, ids)
    expected = []
    for fit, held in parts:
        kernel = Nystroem(kernel="poly", degree=degree, gamma=gamma, coef0=coef0, n_components=len(fit))
        oracle = make_pipeline(Normalizer(), kernel, LogisticRegression(C=C, tol=1e-9, max_iter=10_000))
        scores = oracle.fit(rows[fit], labels[fit]).decision_function(rows[held])
        expected.append(roc_auc_score(labels[held], scores))
    trial = tune(acts, [Polynomial(degree, gamma, coef0)], [C], seed=seed).trials[0]
    # h is fitted to 1e-5, which may turn the order of two rows that nearly tie: at most one pair of a fold's 100.
    assert trial.auc == pytest.approx(np.mean(expected), abs=0.01 / 5)
    assert trial.sd == pytest.approx(np.std(expected, ddof=1), abs=0.01 / 5)


@pytest.mark.parametrize("s", [0.2, 7.0])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_gamma_coef0_and_C_are_two_knobs_and_not_three(degree, s):
    """(γ, c₀, C) and (sγ, s·c₀, C/s^degree) are one candidate: the reason for the default grid."""
    acts = planted()
    one = tune(acts, [Polynomial(degree, 2.0, 0.5)], [3.0]).trials[0]
    other = tune(acts, [Polynomial(degree, 2.0 * s, 0.5 * s)], [3.0 / s**degree]).trials[0]
    assert one.auc == pytest.approx(other.auc, abs=0.01 / 5)  # as above: one pair in the order of another


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", kinds())
def test_folds_part_the_rows_and_no_pair_or_group(kind, seed):
    acts = kinds()[kind]
    names = tuple(torch.arange(len(side)) for side in (acts.desired, acts.undesired))
    tagged = tuple(torch.cat([i.unsqueeze(1), torch.zeros(len(i), 1)], 1).float() for i in names)
    acts = replace(acts, desired=tagged[0], undesired=tagged[1])
    ids = names if acts.groups is None else acts.groups
    seen = ([], [])
    for fit, held in folds_of(acts, 4, seed):
        sides = []
        for side, one, other in zip((0, 1), (fit.desired, fit.undesired), (held.desired, held.undesired), strict=True):
            rows = [part[:, 0].long().tolist() for part in (one, other)]
            assert sorted(rows[0] + rows[1]) == names[side].tolist()
            seen[side].extend(rows[1])
            sides.append([{int(ids[side][row]) for row in part} for part in rows])
            if kind in ("alone", "paired"):
                assert abs(len(other) - len(names[side]) / 4) < 1  # equal shares of each side
        for side in sides:
            assert kind == "alone" or side[0].isdisjoint(side[1])
        if kind != "alone":  # ids are of pairs or groups, which are one thing on both sides
            assert (sides[0][0] | sides[1][0]).isdisjoint(sides[0][1] | sides[1][1])
        if acts.paired:
            assert torch.equal(held.desired, held.undesired)
    assert [sorted(rows) for rows in seen] == [side.tolist() for side in names]  # each is held out once


def test_no_candidate_is_judged_on_rows_that_it_was_fitted_to(monkeypatch):
    acts, fitted, judged = replace(planted(50, 50), paired=True), [], []
    whole = LogRatioBarrier.fit

    def spied_fit(acts, features, **kwargs):
        fitted.append(acts)
        return whole(acts, features, **kwargs)

    def spied_auc(barrier, desired, undesired):
        judged.append((desired, undesired))
        return auc(barrier, desired, undesired)

    monkeypatch.setattr(LogRatioBarrier, "fit", spied_fit)
    monkeypatch.setattr(odesteer_tl.flows.grid_search, "auc", spied_auc)
    tune(acts, [Linear(), Polynomial()], [1.0, 10.0], folds=3)
    assert len(fitted) == len(judged) == 2 * 2 * 3

    def members(side):  # the places of rows among all; those of a pair are the same on both sides
        every = acts.desired if bool((side[0].float() == acts.desired).all(1).any()) else acts.undesired
        return {int((row.float() == every).all(1).nonzero()) for row in side}

    for fit, (desired, undesired) in zip(fitted, judged, strict=True):
        used, unused = members(fit.desired) | members(fit.undesired), members(desired) | members(undesired)
        assert used.isdisjoint(unused) and used | unused == set(range(50))


def test_features_are_fitted_once_a_fold_whatever_the_number_of_Cs():
    seen = []

    class Counted:
        def fit(self, samples):
            seen.append(samples)
            return Polynomial().fit(samples)

    tuned = tune(planted(), [Counted()], [0.1, 1.0, 10.0, 100.0], folds=3)
    assert len(seen) == 3 and len({samples.sum().item() for samples in seen}) == 3
    assert [trial.auc for trial in tuned.trials] == [
        trial.auc for C in (0.1, 1.0, 10.0, 100.0) for trial in tune(planted(), [Polynomial()], [C], folds=3).trials
    ]


def test_the_choice_is_the_largest_mean_and_the_first_of_equal_ones(monkeypatch):
    def scripted(figures):
        left = iter(figures)
        monkeypatch.setattr(odesteer_tl.flows.grid_search, "auc", lambda *_: next(left))
        return tune(planted(), [Linear(), Linear(normalize=False)], [1, 2], folds=2)

    # By features, within them by C, within that by fold.
    chosen = scripted([0.5, 0.7, 0.9, 0.7, 0.7, 0.9, 0.6, 0.9])
    assert (chosen.features, chosen.C, chosen.auc) == (Linear(), 2.0, pytest.approx(0.8))
    assert [trial.C for trial in chosen.trials] == [1.0, 2.0, 1.0, 2.0]
    assert [trial.features for trial in chosen.trials] == 2 * [Linear()] + 2 * [Linear(normalize=False)]
    assert chosen.trials[0].sd == pytest.approx(0.2 / 2**0.5)
    assert scripted([0.5, 0.7, 0.9, 0.7, 0.7, 0.9, 0.9, 0.9]).features == Linear(normalize=False)


def test_what_needs_a_curved_kernel_gets_one():
    chosen = tune(xor(), [Linear(), *DEFAULT_CANDIDATES])
    trials = {(trial.features, trial.C): trial.auc for trial in chosen.trials}
    assert isinstance(chosen.features, Polynomial) and chosen.features.gamma >= 1 and chosen.auc > 0.99
    # Of 150 by 150 rows without signal the AUC is 0.5 ± 0.033: three of these.
    assert all(abs(auc - 0.5) < 0.1 for (features, _), auc in trials.items() if features == Linear())
    assert trials[Polynomial(), 1.0] < 0.7  # the paper's values
    unseen = xor(seed=1)
    barrier = LogRatioBarrier.fit(xor(), chosen.features, C=chosen.C)
    assert auc(barrier, unseen.desired, unseen.undesired) > 0.99


def test_what_is_linear_loses_nothing():
    fit, unseen = shifted(150, 0), shifted(2000, 100)
    chosen, line = tune(fit), tune(fit, [Linear()])
    found = [
        auc(LogRatioBarrier.fit(fit, tuned.features, C=tuned.C), unseen.desired, unseen.undesired)
        for tuned in (chosen, line)
    ]
    assert found[0] > found[1] - 0.01 and found[1] > 0.85
    assert chosen.auc > line.auc - 0.01


def test_the_default_grid_begins_with_the_papers_values():
    assert DEFAULT_CANDIDATES[0] == Polynomial(2, 0.1, 1.0)
    assert len(set(DEFAULT_CANDIDATES)) == 6 and {recipe.coef0 for recipe in DEFAULT_CANDIDATES} == {1.0}


def test_a_seed_fixes_everything_and_the_global_generators_stay():
    acts, candidates = planted(), [Linear(), Polynomial(gamma=2.0, rank=20)]
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    one = tune(acts, candidates, [1, 10], seed=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and np.random.get_state()[2] == before[2]
    torch.manual_seed(6)
    np.random.seed(6)
    assert tune(acts, candidates, [1, 10], seed=4) == one
    other = tune(acts, candidates, [1, 10], seed=5)
    assert [trial.auc for trial in other.trials] != [trial.auc for trial in one.trials]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_any_float_type_are_tuned(dtype):
    acts = planted()
    rounded = replace(acts, desired=acts.desired.to(dtype), undesired=acts.undesired.to(dtype))
    found, exact = (tune(a, [Polynomial(gamma=2.0)], [1.0]).auc for a in (rounded, acts))
    assert found == pytest.approx(exact, abs=0.02)  # bfloat16 rounds by 2⁻⁹, which turns a few pairs


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"features": []}, "tune needs at least one of features and one of Cs, got 0 and 4"),
        ({"Cs": []}, "got 6 and 0"),
        ({"Cs": [1.0, 0.0]}, r"Cs are weights of the log-loss, positive and finite; got \(1.0, 0.0\)"),
        ({"Cs": [-1.0]}, "positive"),
        ({"Cs": [float("nan")]}, "positive"),
        ({"Cs": [float("inf")]}, "finite"),
        ({"folds": 1}, "folds=1 must be at least 2"),
        ({"folds": 46}, r"folds=46 .* of \(60, 45\) rows \(60, 45\) are independent"),
    ],
)
def test_what_cannot_be_tuned_is_said(arguments, message):
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        tune(planted(60, 45), **arguments)


def test_groups_that_cannot_be_shared_out_are_said():
    acts = planted(60, 45)
    few = replace(acts, groups=(torch.arange(60) % 3, torch.arange(45) % 3))
    with pytest.raises(ValueError, match=r"folds=4 .* \(3, 3\) are independent"):
        folds_of(few, 4)
    # Two groups on each side, of which only one is on both: scikit-learn keeps that one with another.
    four = ContrastiveActivations(
        torch.randn(2, 4), torch.randn(2, 4), groups=(torch.tensor([0, 1]), torch.tensor([0, 2]))
    )
    with pytest.raises(ValueError, match="rows of its own"):
        folds_of(four, 2)
    even = planted(50, 50)
    apart = replace(even, paired=True, groups=(torch.arange(50), torch.arange(50) + 1))
    with pytest.raises(ValueError, match="give each pair one group"):
        folds_of(apart)
