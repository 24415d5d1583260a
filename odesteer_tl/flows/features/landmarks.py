"""Landmarks: the points of a Nyström approximation of a kernel, where they are fewer than the samples.

A logistic regression on a kernel ends at h = C Σ rᵢ k(xᵢ, ·) + b, r = y − p its residuals (the representer theorem).
With the polynomial kernel the linear part of h is along Σ r x, and the quadratic part is the form Σ r x xᵀ. The span of
random rows holds little of either; a few sums over all rows hold most of both. The residuals r are estimated by a
regression with two landmarks, the means of the sides. The landmarks are then these means, Σ r x of each side,
Σ r (ωᵀx) x for normal ω, and random rows.

Sums of the third kind are a randomised range finder of the quadratic form (Halko, Martinsson & Tropp, 2011).
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl._shapes import Desired, Samples, Undesired
from odesteer_tl.flows.features.base import ROWS, FeatureMap, features_of
from odesteer_tl.portable.integrate import unit

FEWEST = 6
"""The least number of landmarks that holds one of every kind."""


def random_rows(n: int, most: int, seed: int) -> Int[Tensor, " rows"]:
    """Indices of at most `most` of n rows: all in their order, or `most` of them, uniformly at random by `seed`."""
    if n <= most:
        return torch.arange(n, device="cpu")
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")[:most]


def landmarks(
    desired: Desired,
    undesired: Undesired,
    count: int,
    seed: int,
    normalize: bool,
    through: Callable[[Samples], FeatureMap],
) -> Samples:
    """`count` ≥ `FEWEST` landmarks [count, d_model] in float64: four sums, then half random sums and half rows.

    On the unit sphere with `normalize`. `through` gives the kernel's features for given landmarks. Rows are converted
    to float64 few at a time; the sums of the third kind, of which only the direction matters, are taken in float32.
    """
    sides, n_desired = (desired, undesired), len(desired)
    means = desired.new_zeros(2, desired.shape[1], dtype=torch.float64)
    for mean, side in zip(means, sides, strict=True):
        for x in _points(side, normalize):
            mean += x.sum(0)
        mean /= len(side)
    residuals = _residuals(through(unit(means)[0] if normalize else means), desired, undesired)
    n_mixed = (count - 4) // 2
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(n_mixed, desired.shape[1], generator=generator, device="cpu").to(desired.device)
    weighted, mixed = torch.zeros_like(means), torch.zeros_like(omega)
    for total, side, side_residuals in zip(weighted, sides, residuals, strict=True):
        for x, r in zip(_points(side, normalize), side_residuals.split(ROWS), strict=True):
            total += r @ x
            x32 = x.float()
            mixed += (x32 @ omega.T * r.float().unsqueeze(1)).T @ x32
        total /= side_residuals.sum()
    chosen = random_rows(n_desired + len(undesired), count - 4 - n_mixed, seed).tolist()
    rows = torch.stack([desired[i] if i < n_desired else undesired[i - n_desired] for i in chosen]).double()
    mixed = unit(mixed.double())[0] * rows.norm(dim=1).mean()
    points = torch.cat([means, weighted, mixed, rows])
    return unit(points)[0] if normalize else points


def _points(side: Samples, normalize: bool) -> Iterator[Samples]:
    """The rows in float64, few at a time, on the sphere with `normalize`."""
    for part in side.split(ROWS):
        yield unit(part.double())[0] if normalize else part.double()


def _residuals(phi: FeatureMap, desired: Desired, undesired: Undesired) -> tuple[Float[Tensor, " n"], ...]:
    """y − p of each side by a logistic regression on φ, divided by the largest; never 0, even for separable sides."""
    from sklearn.linear_model import LogisticRegression

    features = features_of(phi, desired, undesired).numpy()
    signs = torch.cat([torch.ones(len(desired), device="cpu"), -torch.ones(len(undesired), device="cpu")]).double()
    logits = LogisticRegression(max_iter=1000).fit(features, signs.numpy()).decision_function(features)
    sizes = torch.sigmoid(-signs * torch.from_numpy(logits)).clamp_min(torch.finfo(torch.float64).tiny)
    return (signs * sizes / sizes.max()).to(desired.device).split([len(desired), len(undesired)])
