"""What the tests of comparisons share: the embedded data, and held-out planted activations."""

import pytest
from instances import planted

import odesteer_tl as ot


@pytest.fixture(scope="session")
def demo():
    return ot.load_demo()


@pytest.fixture(scope="module")
def held_out():
    return planted(50, 40, seed=3)
