"""Planted problems: two classes of activations with known densities, so that steering is judged by the truth.

Both classes differ in a plane of the activation space only, and are symmetric there about the same point: any linear h
has an AUC of .5. An activation is a = Q(x, z), Q a random rotation, x ~ p₊ or p₋ in the plane and z ~ N((0, …, 0,
constant), I) in the other d_model − 2 directions; `constant` plays the large component that real activations share.

`Truth.inside` is the region to reach. It is bounded, so that an activation pushed far away does not count:
log p₊/p₋ ≥ 0 (Bayes), x among the densest 95 % of the desired class, and z no longer than in 999 of 1000 activations.
`start` holds only undesired activations outside it, so that without steering the share that reaches it is 0.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odesteer_tl._shapes import Activations, PerActivation, Samples
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import LogRatioBarrier, auc, with_grad
from odesteer_tl.flows.features import Linear, Polynomial, RandomFourier
from odesteer_tl.methods import Method, ODESteer, StepODESteer

Points = Float[Tensor, "*batch 2"]
Pair = tuple[float | int, float | int]

D_MODEL, SAMPLES = 16, 4000
"""SAMPLES of each side are there to fit, and as many to hold out."""
GRID = tuple(0.8 * k for k in range(1, 21))
"""The lengths T that every method of unit speed may try; the longest is about the radius of the widest class."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equal parts of Gaussians in the plane, around `centres` and as wide as `spread` says along either axis."""

    centres: Float[Tensor, "parts 2"]
    spread: Float[Tensor, "parts 2"]

    def log_density(self, x: Points) -> PerActivation:
        """log p(x), without the constant −log 2π."""
        z = (x.unsqueeze(-2) - self.centres) / self.spread
        return (-0.5 * z.square() - self.spread.log()).sum(-1).logsumexp(-1) - math.log(len(self.centres))

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """n independent points, in float64."""
        part = torch.randint(len(self.centres), (n,), generator=generator)
        return self.centres[part] + self.spread[part] * torch.randn(n, 2, generator=generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Truth:
    """What was planted: a barrier by its `value`, and the region that steering is to reach.

    `frame` Q is orthonormal, its first two columns span the plane; `least_density` bounds log p₊(x) from below and
    `longest_rest` ‖z‖ from above, z without its constant.
    """

    desired: Mixture
    undesired: Mixture
    frame: Float[Tensor, "d_model d_model"]
    constant: float
    least_density: float
    longest_rest: float

    def value(self, a: Activations) -> PerActivation:
        """log p₊(a)/p₋(a), exactly. The other directions cancel."""
        x, _ = self.coordinates(a)
        return self.desired.log_density(x) - self.undesired.log_density(x)

    def inside(self, a: Activations) -> Bool[Tensor, "*batch"]:
        """Whether each activation is a desired one by the truth: the bounded region of the head of this file."""
        x, z = self.coordinates(a)
        high, low = self.desired.log_density(x), self.undesired.log_density(x)
        return (high >= low) & (high >= self.least_density) & (z.norm(dim=-1) <= self.longest_rest)

    def coordinates(self, a: Activations) -> tuple[Points, Float[Tensor, "*batch rest"]]:
        """x in the plane, and z in the other directions without its constant."""
        turned = a.to(self.frame.dtype) @ self.frame  # float64, unless a method has moved the truth to its own
        return turned[..., :2], torch.cat([turned[..., 2:-1], turned[..., -1:] - self.constant], dim=-1)

    def draw(self, side: Mixture, n: int, generator: torch.Generator) -> Samples:
        """n activations [n, d_model] of a side, in float32."""
        z = torch.randn(n, len(self.frame) - 2, generator=generator, dtype=torch.float64)
        z[:, -1] += self.constant
        return (torch.cat([side.draw(n, generator), z], dim=1) @ self.frame.T).float()


@dataclass(frozen=True, eq=False)
class Planted:
    """A problem: `acts` to fit, `held_out` for the AUC, `start` [n, d_model] to steer, and features that suit it."""

    truth: Truth
    acts: ContrastiveActivations
    held_out: ContrastiveActivations
    start: Samples
    features: Polynomial | RandomFourier


@dataclass(frozen=True)
class Found:
    """What `judged` found. `agreement`: share of held-out activations where nonlinear h has the sign of the truth."""

    linear_auc: float
    nonlinear_auc: float
    bayes_auc: float
    agreement: float
    reached: Mapping[str, float]


def equal_means(seed: int = 0) -> Planted:
    """N(0, diag(.6², 3²)) against N(0, diag(3², .6²)): the log ratio is quadratic, and raw features hold it exactly."""
    return _plant(_clouds([(0, 0)], (0.6, 3)), _clouds([(0, 0)], (3, 0.6)), 0.0, Polynomial(normalize=False), seed)


def xor(seed: int = 0) -> Planted:
    """Desired clouds in quadrants I and III, undesired ones in II and IV; a constant component; default features."""
    return _plant(_clouds([(3, 3), (-3, -3)], (1, 1)), _clouds([(3, -3), (-3, 3)], (1, 1)), 5.0, Polynomial(), seed)


def ring(seed: int = 0) -> Planted:
    """A curved boundary: the desired class on an ellipse, the undesired one within and around it, in equal parts.

    No polynomial of degree 3 is positive on a ring only; random Fourier features can be. Their default sigma, the
    median distance, would blur the ring: half of it is about the ring's radius.
    """
    outer = _ellipse(17, 10, 32)
    undesired = _clouds([(0, 0)] * len(outer) + outer, (1.2, 1.2))
    return _plant(_clouds(_ellipse(9, 5, 24), (1, 1)), undesired, 0.0, RandomFourier(sigma=6.0), seed)


PROBLEMS: dict[str, Callable[[int], Planted]] = {"equal means": equal_means, "XOR": xor, "ring": ring}
"""A seed to a problem: it turns the plane and draws the samples; what is planted stays the same."""


def share_reached(problem: Planted, trials: Iterable[Samples]) -> float:
    """Share that ends inside. A trial is all of `start`, moved; the best on its first half is judged on the second."""
    half = len(problem.start) // 2
    inside = [problem.truth.inside(moved).double() for moved in trials]
    return float(max(inside, key=lambda to_device: float(to_device[:half].mean()))[half:].mean())


def strengths(problem: Planted, method: Method, grid: Sequence[float] = GRID) -> Iterator[Samples]:
    """`start`, steered with every T of a grid."""
    return (method.steer(problem.start, T=T) for T in grid)


def vectors(problem: Planted, directions: int = 12) -> Iterator[Samples]:
    """`start`, shifted by every length of `GRID` along vectors all round the plane.

    A linear method adds one vector to all; the best of these, which only the truth can tell, is what one can hope for.
    """
    unit = torch.tensor(_ellipse(1, 1, directions), dtype=torch.float64) @ problem.truth.frame[:, :2].T
    return (problem.start + T * direction for direction in unit for T in GRID)


def judged(problem: Planted, steps: int = 10) -> Found:
    """{linear, nonlinear} barrier × {one, `steps`} steps at unit speed, fitted to the same data, normalised alike.

    Why one step misses. XOR: the gradient turns on the way. From an undesired cloud it points at the saddle between the
    clouds, and only from there into a desired one, so that for half of the activations no T at all hits. Equal means
    and ring: for most some T would hit, but each activation needs its own and all share one. Several steps turn into
    the desired region and stay within it, so that one T fits most.
    """
    acts, unseen = problem.acts, problem.held_out
    recipes = {"linear": Linear(normalize=problem.features.normalize), "nonlinear": problem.features}
    fitted = {name: LogRatioBarrier.fit(acts, recipe) for name, recipe in recipes.items()}
    aucs = [auc(h, unseen.desired, unseen.undesired) for h in (*fitted.values(), with_grad(problem.truth))]
    both = torch.cat([unseen.desired, unseen.undesired])
    same = (fitted["nonlinear"].value(both) >= 0) == (problem.truth.value(both) >= 0)
    reached = {}
    for name, h in fitted.items():
        methods = {"one step": StepODESteer(h, acts.origin), f"{steps} steps": ODESteer(h, acts.origin, steps)}
        reached |= {f"{name}, {way}": share_reached(problem, strengths(problem, m)) for way, m in methods.items()}
    return Found(*aucs, agreement=float(same.double().mean()), reached=reached)


def _clouds(centres: Sequence[Pair], spread: Pair) -> Mixture:
    at = torch.tensor(centres, dtype=torch.float64)
    return Mixture(at, torch.tensor(spread, dtype=torch.float64).expand_as(at))


def _ellipse(width: float | int, height: float | int, n: int) -> list[Pair]:
    return [(width * math.cos(2 * math.pi * k / n), height * math.sin(2 * math.pi * k / n)) for k in range(n)]


def _plant(
    desired: Mixture, undesired: Mixture, constant: float, features: Polynomial | RandomFourier, seed: int
) -> Planted:
    generator = torch.Generator().manual_seed(seed)
    frame, _ = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator, dtype=torch.float64))
    density = desired.log_density(desired.draw(20_000, generator)).quantile(0.05)
    rest = torch.randn(20_000, D_MODEL - 2, generator=generator, dtype=torch.float64).norm(dim=1).quantile(0.999)
    truth = Truth(desired, undesired, frame, constant, float(density), float(rest))
    drawn = [truth.draw(side, SAMPLES, generator) for side in (desired, undesired) * 2]
    acts, held_out = ContrastiveActivations(drawn[0], drawn[1]), ContrastiveActivations(drawn[2], drawn[3])
    fresh = truth.draw(undesired, SAMPLES // 2, generator)
    return Planted(truth, acts, held_out, fresh[~truth.inside(fresh)][: SAMPLES // 4], features)
