"""Landmarks: the points through which a kernel is seen, where they are fewer than the samples.

A logistic regression on a kernel ends at h = C Σ rᵢ k(xᵢ, ·) + b, r = y − p its residuals. Of the polynomial kernel the
linear part is then along Σ r x, and the quadratic part is the form Σ r x xᵀ. Rows drawn at random hold little of either
in their span; a few sums over all rows hold most of both. With r guessed by a regression that sees two points alone,
the means of the sides, landmarks are those means, Σ r x of either side, Σ r (ωᵀx) x for normal ω, and rows.

Sums of the third kind are a randomised range finder (Halko, Martinsson & Tropp, 2011) of the quadratic form; that the
regression is spanned by the samples, with those weights, is the representer theorem.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl._shapes import Desired, Samples, Undesired
from odesteer_tl.flows.features.base import ROWS, FeatureMap, features_of
from odesteer_tl.portable.integrate import unit

FEWEST = 6
"""Landmarks from which on there is one of every kind."""


def drawn(n: int, most: int, seed: int) -> Int[Tensor, " rows"]:
    """Which of n rows are taken: all in their order, or `most`, evenly at random by `seed`."""
    return torch.arange(n) if n <= most else torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most]


def landmarks(
    desired: Desired,
    undesired: Undesired,
    count: int,
    seed: int,
    normalize: bool,
    through: Callable[[Samples], FeatureMap],
) -> Samples:
    """`count` ≥ `FEWEST` of them [count, d_model] in float64, half of those beside the four sums being rows.

    On the sphere with `normalize`. `through` is the kernel's features through given landmarks. Rows are counted in
    float64 few at a time; what only has to point somewhere, the third kind of sums, in float32.
    """
    sides, n_desired = (desired, undesired), len(desired)
    means = desired.new_zeros(2, desired.shape[1], dtype=torch.float64)
    for mean, side in zip(means, sides, strict=True):
        for x in _points(side, normalize):
            mean += x.sum(0)
        mean /= len(side)
    residuals = _residuals(through(unit(means)[0] if normalize else means), desired, undesired)
    n_mixed = (count - 4) // 2
    omega = torch.randn(n_mixed, desired.shape[1], generator=torch.Generator().manual_seed(seed)).to(desired.device)
    weighted, mixed = torch.zeros_like(means), torch.zeros_like(omega)
    for total, side, of_side in zip(weighted, sides, residuals, strict=True):
        for x, r in zip(_points(side, normalize), of_side.split(ROWS), strict=True):
            total += r @ x
            single = x.float()
            mixed += (single @ omega.T * r.float().unsqueeze(1)).T @ single
        total /= of_side.sum()
    taken = drawn(n_desired + len(undesired), count - 4 - n_mixed, seed).tolist()
    rows = torch.stack([desired[i] if i < n_desired else undesired[i - n_desired] for i in taken]).double()
    mixed = unit(mixed.double())[0] * rows.norm(dim=1).mean()
    found = torch.cat([means, weighted, mixed, rows])
    return unit(found)[0] if normalize else found


def _points(side: Samples, normalize: bool) -> Iterator[Samples]:
    """The rows in float64, few at a time, on the sphere with `normalize`."""
    for part in side.split(ROWS):
        yield unit(part.double())[0] if normalize else part.double()


def _residuals(phi: FeatureMap, desired: Desired, undesired: Undesired) -> tuple[Float[Tensor, " n"], ...]:
    """y − p of either side, by a logistic regression on φ, over the largest; never 0, however far the sides are."""
    from sklearn.linear_model import LogisticRegression

    seen = features_of(phi, desired, undesired).numpy()
    signs = torch.cat([torch.ones(len(desired)), -torch.ones(len(undesired))]).double()
    logits = LogisticRegression(max_iter=1000).fit(seen, signs.numpy()).decision_function(seen)
    sizes = torch.sigmoid(-signs * torch.from_numpy(logits)).clamp_min(torch.finfo(torch.float64).tiny)
    return (signs * sizes / sizes.max()).to(desired.device).split([len(desired), len(undesired)])
