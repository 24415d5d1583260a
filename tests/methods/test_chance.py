"""All randomness comes from the seed."""

import numpy as np
import pytest
import torch
from instances import (
    ALL_METHODS,
    METHODS,
    activations,
    planted,
    taken,
)

from odesteer_tl.flows.features import Polynomial, PolynomialSketch, RandomFourier
from odesteer_tl.methods import ODESteer, RandomDirection

AT = {"headshift": "z"}
"""Methods that were not fitted at `resid_post`."""

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("name", ALL_METHODS)
def test_no_fit_reads_or_moves_the_global_generators(name):
    bytes_of = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed)
        before = (torch.get_rng_state(), np.random.get_state()[1].tobytes())
        method = METHODS[name]()
        bytes_of.append(method.steer(activations(3, dtype=torch.float32), T=taken(name, 1.5)).numpy().tobytes())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tobytes() == before[1]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize(
    "recipe_of",
    [
        lambda seed: Polynomial(rank=9, seed=seed),
        lambda seed: PolynomialSketch(60, seed=seed),
        lambda seed: RandomFourier(40, seed=seed),
    ],
)
def test_the_seed_of_the_features_is_the_only_chance(recipe_of):
    a = activations(3, dtype=torch.float32)
    same, again, other = (ODESteer.fit(planted(), features=recipe_of(s)).steer(a, T=1.5) for s in (4, 4, 5))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_random_directions_are_unit_and_by_seed():
    first, again, other = (RandomDirection.fit(planted(), seed=s).direction for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.norm()) == pytest.approx(1, abs=1e-6)  # float32
    flipped = planted()
    swapped = RandomDirection.fit(type(flipped)(flipped.undesired, flipped.desired), seed=0).direction
    assert torch.equal(first, swapped)  # it knows nothing of the two sides
