"""Wrong rules, each of them made before by someone: the parity test must see them, far above its tolerance."""

from dataclasses import replace

import pytest
import torch
from models import BACKENDS, FAMILIES, load, width
from oracle import PROMPTS, TOLERANCE, Stub, T, deviations, generate

import odesteer_tl as ot
from odesteer_tl import following, positions
from odesteer_tl.backends import carrying

ROWS = PROMPTS["batch"]
STRENGTHS = torch.tensor([3.0, 1.0, 2.0])


def none(patch):
    """The package as it is."""


def one_early(patch):
    rule = positions.Tracker._rule
    patch.setattr(positions.Tracker, "_rule", lambda self, index, lengths: rule(self, index + 1, lengths))


def one_late(patch):
    rule = positions.Tracker._rule
    patch.setattr(positions.Tracker, "_rule", lambda self, index, lengths: rule(self, index - 1, lengths))


def only_the_last_column(patch):
    """A hook that steers column -1: right with a cache, another method without."""
    select = positions.Tracker.select

    def last(self, now):
        found = select(self, now)
        keep = found.columns == now.width - 1
        return replace(
            found, rows=found.rows[keep], columns=found.columns[keep], positions=found.positions[keep], everything=False
        )

    patch.setattr(positions.Tracker, "select", last)


def pads_counted(patch):
    """Positions counted from the first column, so that pads are steered in place of tokens."""
    patch.setattr(following, "mask_of", lambda now, cached=False: torch.ones(now.batch, now.width, dtype=torch.bool))


def rows_swapped(patch):
    rows = carrying._rows

    def swapped(*what):
        find = rows(*what)
        return lambda: find().flip(0)

    patch.setattr(carrying, "_rows", swapped)


def result_dropped(patch):
    """The edit goes to something that the model does not use, as `output[0]` of a block that returns no tuple."""
    hook = carrying.Carrier.hook

    def dropped(self, site):
        carry_out = hook(self, site)

        def to_nothing(value, hook=None):
            carry_out(value.clone(), hook)

        return to_nothing

    patch.setattr(carrying.Carrier, "hook", dropped)


def no_op(patch):
    patch.setattr(Stub, "push", lambda self, a: torch.zeros_like(a))


# mutant, its rule of positions, cache
CASES = [
    (one_early, "decoding", True),
    (one_early, "decoding", False),
    (one_early, "generated", True),
    (one_late, "decoding", True),
    (one_late, "decoding", False),
    (one_late, "prompt", True),
    (only_the_last_column, "decoding", False),
    (only_the_last_column, "all", True),
    (pads_counted, slice(0, 1), True),
    (pads_counted, slice(0, 1), False),
    (rows_swapped, "decoding", True),
    (rows_swapped, "decoding", False),
    (result_dropped, "decoding", True),
    (no_op, "decoding", True),
]


@pytest.fixture(scope="module", params=[(kind, family) for kind in BACKENDS for family in FAMILIES], ids="-".join)
def loaded(request):
    kind, family = request.param
    return kind, family, load(kind, family)


def worst(monkeypatch, loaded, mutant, rule, cache):
    """The largest distance from the oracle over all rows and steps, with `mutant` in place of the package."""
    kind, family, model = loaded
    method = Stub(width(model))
    strengths = STRENGTHS if mutant is rows_swapped else torch.tensor([T] * len(ROWS))
    with monkeypatch.context() as patch:
        mutant(patch)
        with ot.steering(model, method, strengths, positions=rule):
            new, found = generate(model, kind, ROWS, cache)
    return max(error for error, _ in deviations(family, ROWS, new, found, rule, method, strengths.tolist()))


@pytest.mark.parametrize("mutant, rule, cache", CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_oracle_tells_a_wrong_rule(monkeypatch, loaded, mutant, rule, cache):
    assert worst(monkeypatch, loaded, mutant, rule, cache) >= 100 * TOLERANCE


@pytest.mark.parametrize("rule", ["decoding", "generated", "prompt", "all", slice(0, 1)], ids=str)
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
def test_the_oracle_passes_the_right_one(monkeypatch, loaded, rule, cache):
    assert worst(monkeypatch, loaded, none, rule, cache) <= TOLERANCE
