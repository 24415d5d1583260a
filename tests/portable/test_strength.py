"""One strength, T or relative_T, however it is given."""

import pytest
import torch
from instances import ALL_METHODS, BY_NORM, activations, fitted, without_shape_checks
from models import KINDS, load

import odesteer_tl as ot

TOKENS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 4]])


@pytest.mark.parametrize("name", BY_NORM)
def test_a_strength_in_the_place_of_T_steers_as_the_pair_does(name):
    method, a = fitted(name), activations(5)
    rows = torch.tensor([0.3, 0.0, -0.2, 0.1, 0.5])
    for given in ({"T": 0.7}, {"T": rows}, {"relative_T": 0.2}, {"relative_T": rows}):
        strength = ot.Strength(**given)
        for each in (method, method.portable()):
            assert torch.equal(each.steer(a, strength), each.steer(a, **given))
            by_pair, by_strength = each.edits(layer=1, **given)[0], each.edits(strength, layer=1)[0]
            row = ot.State(torch.arange(5))
            assert torch.equal(by_strength.apply(a, a, row), by_pair.apply(a, a, row))


def test_relative_strengths_stand_beside_absolute_ones_in_a_list():
    """Two methods at two layers, the second by its T relative to each norm: as two blocks, one in the other."""
    for kind in KINDS:
        model = load(kind, "llama")
        first, second = (ot.CAA.fit(ot.collect(model, TOKENS, TOKENS + 1, layer=layer)) for layer in (0, 1))
        with ot.steering(model, first, 2.0), ot.steering(model, second, relative_T=0.3):
            expected = model(TOKENS)
        with ot.steering(model, [(first, ot.Strength(2.0)), (second, ot.Strength(relative_T=0.3))]):
            assert torch.equal(model(TOKENS), expected)
        with ot.steering(model, [(first, 2.0), (second, 0.3)]):
            assert not torch.allclose(model(TOKENS), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            lambda s: {"T": s, "relative_T": 0.2},
            r"Give either T or relative_T, got T=Strength\(T=1\.0, relative_T=None\)",
        ),
        (lambda s: {"T": None, "relative_T": s}, "T is a number or a tensor, one value per row; got a Strength"),
        (lambda s: {"T": [s]}, "got a list"),
        (lambda s: {"T": torch.tensor([1.0, float("nan")])}, "must be finite"),
        (lambda s: {"T": torch.tensor([1.0, 1j])}, "real numbers, one value per row; got torch.complex64"),
        (lambda s: {"T": torch.tensor([True, False])}, "real numbers, one value per row; got torch.bool"),
        (lambda s: {"T": 10**400}, "must be finite"),
    ],
)
def test_what_is_no_strength_is_refused(given, said):
    with without_shape_checks(), pytest.raises(ValueError, match=said):
        fitted("caa").portable().steer(activations(2), **given(ot.Strength(1.0)))


def test_limits_and_dtypes_hold_for_it_too():
    with pytest.raises(ValueError, match="no relative_T"):
        fitted("ablation").steer(activations(2), ot.Strength(relative_T=0.5))
    with pytest.raises(ValueError, match="does not fit float16"):
        fitted("caa").steer(activations(2, dtype=torch.float16), ot.Strength(1e5))


def test_it_does_not_change_and_is_shown_as_it_is_written():
    strength = ot.Strength(relative_T=0.2)
    with pytest.raises(AttributeError, match="frozen"):
        strength.T = 1.0  # type: ignore[misc]
    assert repr(strength) == "Strength(T=None, relative_T=0.2)"
    assert strength == strength and strength != ot.Strength(relative_T=0.2) and {strength: 1}[strength] == 1


@pytest.mark.parametrize("name", ALL_METHODS)
def test_the_number_0_gives_back_the_activations_themselves(name):
    a = activations(3)
    assert fitted(name).steer(a, ot.Strength(0)) is a
