"""Wrong labels: how often they are told of on planted activations, and how seldom where there are none.

Sides are `apart` standard deviations of one of 32 coordinates; h is the difference of the means of four fifths of the
rows, on the fifth that is held out, written here anew.
"""

import pytest
import torch

from odesteer_tl.evaluation.data_check.activation_items import labels
from odesteer_tl.evaluation.data_check.rankings import Ranking
from odesteer_tl.evaluation.data_check.surface import Surface

SEEDS = 60
SHAPES = {
    "normal": torch.distributions.Normal(0.0, 1.0),
    "heavy tails": torch.distributions.StudentT(4.0),
    "skewed": torch.distributions.Exponential(1.0),
}


def held_out(side: int, apart: float, flipped: int, shape: str, seed: int) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = SHAPES[shape].sample((2 * side, 32)).double()
    labelled = torch.arange(2 * side) < side
    true = labelled.clone()
    true[:flipped], true[side : side + flipped] = False, True
    rows[true, 0] += apart
    h = torch.empty(2 * side, dtype=torch.float64)
    for fold in range(5):
        held = torch.arange(2 * side) % 5 == fold
        way = rows[labelled & ~held].mean(0) - rows[~labelled & ~held].mean(0)
        h[held] = rows[held] @ way / way.norm()
    return h


def found(h: torch.Tensor, name: str = "h"):
    side = len(h) // 2
    ranking = Ranking(name, h, torch.ones(len(h)), side, tuple(range(len(h))))
    return labels([ranking], Surface([""] * len(h), [[0]] * len(h), side))


def looks(*of) -> float:
    return sum(found(held_out(*of, seed))[0].verdict == "look" for seed in range(SEEDS)) / SEEDS


@pytest.mark.parametrize("shape", SHAPES)
def test_clean_labels_pass_in_nearly_every_draw(shape):
    """The share of looks over all settings, each with 60 seeds."""
    shares = [looks(side, apart, 0, shape) for side in (20, 40, 100) for apart in (0.0, 1.5, 2.5, 4.0, 6.0)]
    assert sum(shares) / len(shares) <= 0.02 and max(shares) <= 0.1, shares


@pytest.mark.parametrize(
    ("shape", "side", "apart", "flipped", "least"),
    [
        ("normal", 40, 4.0, 4, 0.75), ("normal", 40, 6.0, 2, 0.9), ("normal", 100, 4.0, 10, 0.95),
        ("heavy tails", 40, 6.0, 4, 0.9), ("skewed", 40, 4.0, 4, 0.75), ("normal", 20, 6.0, 2, 0.8),
    ],
)  # fmt: skip
def test_a_tenth_of_wrong_labels_is_told_of_where_the_sides_are_apart(shape, side, apart, flipped, least):
    assert looks(side, apart, flipped, shape) >= least


def test_the_texts_to_read_are_those_with_wrong_labels():
    item, odd = found(held_out(40, 8.0, 4, "normal", 0))
    assert item.verdict == "look" and item.numbers["wrong"] >= 6
    assert {(one.side, one.row) for one in odd} == {
        (side, row) for side in ("desired", "undesired") for row in range(4)
    }


def test_the_ranking_that_shows_more_is_named_and_read():
    blind, sharp = (
        Ranking(name, held_out(40, apart, 4, "normal", 1), torch.ones(80), 40, tuple(range(80)))
        for name, apart in (("blind", 0.0), ("sharp", 8.0))
    )
    surface = Surface([""] * 80, [[0]] * 80, 40)
    (one, odd), (other, same) = labels([blind, sharp], surface), labels([sharp, blind], surface)
    assert one == other and odd == same and one.why.startswith("sharp puts ") and one.verdict == "look"
