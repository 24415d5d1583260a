"""The search for the strength that spends a budget, on costs whose answers are known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odesteer_tl.evaluation.root_search import first_crossing, near_crossing


def measured(cost, calls):
    def measure(values):
        calls.append(list(values))
        return [cost(value) for value in values]

    return measure


@given(st.floats(0.5, 6), st.floats(1e-3, 1e3), st.floats(1e-4, 10), st.floats(1e-2, 1e2))
@settings(max_examples=100, deadline=None)
def test_a_power_of_the_strength_is_met_wherever_the_search_begins(power, scale, budget, guess):
    calls = []
    found = first_crossing(measured(lambda T: scale * T**power, calls), budget, guess)
    right = (budget / scale) ** (1 / power)
    if found.reached:
        assert abs(found.cost / budget - 1) <= 0.05 and found.monotone
        assert found.strength == pytest.approx(right, rel=0.11)
    else:  # farther from the guess than the rounds go
        assert abs(math.log2(right / guess)) > 12
    assert len(calls) == found.rounds <= 6


@pytest.mark.parametrize("guess", [0.01, 0.3, 1.0, 20.0])
def test_a_cost_that_bends_is_met(guess):
    """Quadratic at first, then it rests: tanh² as of a map that ends somewhere."""
    found = first_crossing(measured(lambda T: math.tanh(T) ** 2, []), 0.5, guess)
    assert found.reached and found.strength == pytest.approx(math.atanh(math.sqrt(0.5)), rel=0.06)


def test_of_several_crossings_the_first_is_taken_and_it_is_said():
    """|sin| times a slow rise: .5 is crossed upwards near .46, then again after each zero."""
    found = first_crossing(measured(lambda T: abs(math.sin(T)) * (1 + 0.1 * T), []), 0.5, 1.0)
    assert found.reached and found.strength < 0.6 and not found.monotone


def test_a_cost_that_is_never_off_is_met_where_it_rises():
    """As a closed loop: 1 at T = 0, least at T = 1, and the budget lies on the way up."""
    found = first_crossing(measured(lambda T: 0.05 + (T - 1) ** 2, []), 0.3, 2.0)
    assert found.reached and found.strength == pytest.approx(1.5, rel=0.05) and not found.monotone


def test_what_spends_too_little_or_too_much_is_not_reached():
    weak = first_crossing(measured(lambda T: 0.01 * T, []), 0.5, 0.5, most=1.0)
    assert not weak.reached and weak.strength == 1.0 and weak.cost == 0.01
    strong = first_crossing(measured(lambda T: 2.0 + T, []), 0.5, 1.0)
    assert not strong.reached and strong.cost > 2


def test_a_jump_over_the_budget_is_not_reached():
    assert not first_crossing(measured(lambda T: 0.0 if T < 0.7 else 3.0, []), 0.5, 1.0).reached


def test_a_cost_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite: nan"):
        first_crossing(measured(lambda T: math.nan, []), 0.5, 1.0)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("guess", [0.01, 1.0, 7.0])
def test_a_near_guess_needs_few_measurements(power, guess):
    measured = []

    def measure(strength):
        measured.append(strength)
        return 0.3 * strength**power

    found = near_crossing(measure, 0.3, guess, tries=9)
    assert 0.3 * found**power == pytest.approx(0.3, rel=0.05)
    assert near_crossing(lambda strength: 1e-9, 0.3, 1.0) is None and near_crossing(measure, 0.3, 1.0, 0.5) is None
