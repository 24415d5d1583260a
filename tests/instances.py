"""What the laws are tested on. Add a feature map, barrier, field, solver or method here, and it inherits the laws.

All data are planted and seeded: the two sides differ in mean along one direction and in spread along another, so that
the linear and the nonlinear part of a log ratio both have something to find.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import jaxtyping
import torch

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import Barrier, LogRatioBarrier, mean_difference, with_grad
from odesteer_tl.flows.features import Linear, Polynomial, PolynomialSketch, RandomFourier, Recipe
from odesteer_tl.flows.fields import Constant, Field, Gradient, UnitGradient
from odesteer_tl.flows.solvers import RK4, Euler, Midpoint
from odesteer_tl.methods import GradientFlow, Method, MiMiC, ODESteer
from odesteer_tl.methods.registry import Entry, as_needed, registered
from odesteer_tl.methods.view import Unit
from odesteer_tl.portable.sites import Site
from odesteer_tl.remote.payloads import moved

torch.set_num_threads(1)  # the arrays are tiny: threads cost more than they save

D_MODEL = 24


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """As the package runs for its users: beartype does not speak before the package's own messages do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def planted(
    n_desired: int = 60, n_undesired: int = 45, d_model: int = D_MODEL, seed: int = 0, layer: int | None = 3
) -> ContrastiveActivations:
    """Two clouds of norm about 5: shifted along a random direction, and the desired one wider along another."""
    generator = torch.Generator().manual_seed(seed)
    shift, wide, offset = torch.randn(3, d_model, generator=generator)
    desired = torch.randn(n_desired, d_model, generator=generator) + 0.6 * shift + 0.3 * offset
    desired = desired + torch.randn(n_desired, 1, generator=generator) * 0.4 * wide
    undesired = torch.randn(n_undesired, d_model, generator=generator) + 0.3 * offset
    return ContrastiveActivations(desired, undesired, layer=layer, model_name="planted", processing="raw")


def with_queries(n: int = 60, d_model: int = D_MODEL) -> ContrastiveActivations:
    """Pairs, each with a query that both members are made from."""
    acts = planted(n, n, d_model)
    return replace(acts, paired=True, queries=(acts.desired + acts.undesired) / 2)


def planted_at_z(*sizes: int) -> ContrastiveActivations:
    """The same numbers, said to be what four heads give."""
    acts = planted(*sizes)
    return replace(acts, hook_name=Site(acts.layer, "z").hook_name)


def activations(*batch: int, d_model: int = D_MODEL, seed: int = 7, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Activations that no fit has seen, of norm about √d_model."""
    return torch.randn(*batch, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Own:
    """A user's barrier: only `value`, smooth, nonlinear, of no class that the package knows."""

    def value(self, a: torch.Tensor) -> torch.Tensor:
        return torch.tanh(a[..., 0] - 0.5 * a[..., 1]) - 0.05 * ((a * a).sum(-1) - 20.0) * torch.cos(a[..., 2])


RECIPES: dict[str, Recipe] = {
    "linear-unit": Linear(normalize=True),
    "linear-raw": Linear(normalize=False),
    **{
        f"polynomial-{degree}-{'unit' if normalize else 'raw'}": Polynomial(degree=degree, normalize=normalize)
        for degree in (1, 2, 3)
        for normalize in (True, False)
    },
    "polynomial-2-curved": Polynomial(degree=2, gamma=2.0, coef0=0.5),  # the quadratic part outweighs the linear one
    "polynomial-2-homogeneous": Polynomial(degree=2, gamma=1.0, coef0=0.0),
    "polynomial-3-curved": Polynomial(degree=3, gamma=2.0, coef0=0.5),
    "polynomial-2-low-rank": Polynomial(degree=2, gamma=2.0, rank=8),  # d_model > 2·rank: the reduced flow pays
    "polynomial-3-low-rank": Polynomial(degree=3, gamma=2.0, rank=8),
    **{
        f"sketch-{degree}-{'unit' if normalize else 'raw'}": PolynomialSketch(
            n_components=300, degree=degree, gamma=0.5, normalize=normalize
        )
        for degree in (1, 2, 3)
        for normalize in (True, False)
    },
    "sketch-2-homogeneous": PolynomialSketch(n_components=300, degree=2, gamma=1.0, coef0=0.0),
    "fourier-raw": RandomFourier(n_components=200),
    "fourier-unit": RandomFourier(n_components=200, normalize=True),
    "fourier-few": RandomFourier(n_components=8),  # d_model > 2·n_components: the reduced flow pays
}


@cache
def log_ratio(name: str) -> LogRatioBarrier:
    """The log ratio fitted to planted data on the features of that name, in float32 as `fit` returns it."""
    return LogRatioBarrier.fit(planted(), RECIPES[name])


def in_float64(thing):
    return moved(thing, dtype=torch.float64)


ALL_FEATURES: list[str] = list(RECIPES)
ON_THE_SPHERE: list[str] = [name for name, recipe in RECIPES.items() if recipe.normalize]
REDUCIBLE: list[str] = [name for name in RECIPES if not name.startswith("sketch")]


BARRIERS: dict[str, Callable[[], Barrier]] = {
    **{name: (lambda name=name: in_float64(log_ratio(name))) for name in RECIPES},
    "mean-difference": lambda: in_float64(mean_difference(planted())),
    "own": lambda: with_grad(Own()),
}
ALL_BARRIERS: list[str] = list(BARRIERS)


FIELDS: dict[str, Callable[[], Field]] = {
    "unit-gradient": lambda: UnitGradient(BARRIERS["polynomial-2-curved"]()),
    "unit-gradient-sketch": lambda: UnitGradient(BARRIERS["sketch-3-unit"]()),
    "unit-gradient-own": lambda: UnitGradient(BARRIERS["own"]()),
    "gradient": lambda: Gradient(BARRIERS["polynomial-3-raw"]()),
    "gradient-fourier": lambda: Gradient(BARRIERS["fourier-raw"]()),
    "constant": lambda: Constant(activations(seed=11)),
}
ALL_FIELDS: list[str] = list(FIELDS)

SOLVERS = {"euler": Euler(), "midpoint": Midpoint(), "rk4": RK4()}
ALL_SOLVERS: list[str] = list(SOLVERS)


def example(entry: Entry) -> Method:
    """The small instance that a method registers, fitted to planted data as it needs them."""
    pairs = str(entry.needs).startswith("pairs")
    return entry.example(as_needed(planted(60, 60) if pairs else planted(), entry.needs))


METHODS: dict[str, Callable[[], Method]] = {
    **{entry.name: (lambda entry=entry: example(entry)) for entry in registered() if entry.example is not None},
    "odesteer-low-rank-rk4": lambda: ODESteer.fit(planted(), features=Polynomial(3, rank=8), solver="rk4", steps=4),
    "odesteer-sketch": lambda: ODESteer.fit(planted(), features=PolynomialSketch(n_components=300), tol=1e-4),
    "odesteer-fourier-midpoint": lambda: ODESteer.fit(planted(), features=RandomFourier(200), solver="midpoint"),
    "mimic-ungated": lambda: MiMiC.fit(planted(), gate=False),
    "mimic-few": lambda: MiMiC.fit(planted(5, 6), gate=False),  # d_model > 2·samples: the map in their span
    "gradientflow-own": lambda: GradientFlow(Own(), layer=3),
    "gradientflow-any-speed": lambda: GradientFlow(log_ratio("linear-raw"), steps=3, layer=3, unit_speed=False),
}
"""Every registered method, and those that differ from its small instance in what the laws may turn on."""

ALL_METHODS: list[str] = list(METHODS)
KEPT: list[str] = [name for name in METHODS if not name.endswith("own")]  # a user's own code is not written to disk
SPHERICAL: list[str] = ["odesteer", "odesteer-low-rank-rk4", "odesteer-sketch", "stepodesteer", "gradientflow"]
"""Methods whose h depends on the direction of a alone, so that steering commutes with scaling."""
UNITS: dict[str, Unit] = {
    name: next(entry.method.view.T for entry in registered() if entry.name == name.split("-")[0]) for name in METHODS
}
"""What T counts in each of them."""
BY_NORM: list[str] = [name for name in METHODS if UNITS[name].bounds is None]
"""Methods that take relative_T."""


def taken(name: str, T):
    """T, a number or a tensor, as a strength that the method takes: where T has bounds, |T|/(1 + |T|) of them."""
    if (bounds := UNITS[name].bounds) is None or bounds[0] == -math.inf:
        return T
    return bounds[0] + (bounds[1] - bounds[0]) * abs(T) / (1 + abs(T))


def strengths(name: str, *given: dict) -> list[dict]:
    """Of the strengths given, those that the method takes, with T as it takes it."""
    return [
        {kind: taken(name, value) for kind, value in strength.items()}
        for strength in given
        if name in BY_NORM or "relative_T" not in strength
    ]


@cache
def fitted(name: str) -> Method:
    return METHODS[name]()


def fewer(demo, texts, validation_prompts):
    """The demo with so many texts a side to fit on, three to check on, two prompts and no pairs."""
    return replace(
        demo, pairs=[], desired=demo.desired[:texts], undesired=demo.undesired[:texts], prompts=demo.prompts[:2],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
        validation_prompts=demo.validation_prompts[:validation_prompts],
    )  # fmt: skip


def shorter(demo, n=40, words=20):
    """The demo with fewer texts, and their ends alone, so that its fits are short."""
    sides = ("desired", "undesired", "validation_desired", "validation_undesired")
    cut = {name: [" ".join(text.split()[-words:]) for text in getattr(demo, name)[:n]] for name in sides}
    return replace(demo, pairs=demo.pairs[:n], **cut)
