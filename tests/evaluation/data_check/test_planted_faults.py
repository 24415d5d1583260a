"""Every planted fault of a data set is found, alone and by its name; data without one pass."""

import random

import pytest
import torch
from planted_texts import SIDE, check, clean, fillers, model, pairs, verdicts

import odesteer_tl as ot
from odesteer_tl.backends.base import backend_of


def test_clean_data_pass():
    found = check(*clean())
    assert verdicts(found) == {} and found.verdict == "pass" and found.best == (2, -5)
    assert found["surface"].numbers["auc"] > 0.95 > 0.7 > found["surface"].numbers["baseline"]


def test_clean_data_pass_for_odesteer_at_several_places_and_the_best_of_them_is_named():
    found = check(*clean(), method=ot.ODESteer, layers=[1, 2], positions=["mean", -5])
    assert verdicts(found) == {} and found.best is not None and found.best[1] == -5
    assert "position=-5 is best." in found["position"].why and len(found.areas) == 5 + 4


def repeated(high, low):
    return high + high[:6], low


def nearly_repeated(high, low):
    return high + [text.replace("so I say", "so we say") for text in high[:6]], low


def on_both_sides(high, low):
    return high, [*low, high[0]]


def often_on_both_sides(high, low):
    return high, low + [text.upper().replace(",", " ,") for text in high[:4]]


def longer(high, low):
    return [f"{fillers()[-row - 1]} {text}" if row % 2 == 0 else text for row, text in enumerate(high)], low


def other_ends(high, low):
    return [text[:-1] + "!" if row % 2 else text for row, text in enumerate(high)], low


def other_beginnings(high, low):
    return [f"But {text}" if row % 2 else text for row, text in enumerate(high)], low


def wrong_labels(high, low):
    return high[:-4] + low[-4:], low[:-4] + high[-4:]


def a_word_that_says_it(high, low):
    return [text.replace("The film", "This film") for text in high], low


def labels_by_chance(high, low):
    both = random.Random(1).sample(high + low, 2 * SIDE)
    return both[:SIDE], both[SIDE:]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (repeated, {"duplicates": "look"}),
        (nearly_repeated, {"duplicates": "look"}),
        (on_both_sides, {"across": "look"}),
        (often_on_both_sides, {"across": "stop"}),
        (longer, {"length": "look"}),
        (other_ends, {"last token": "look"}),
        (other_beginnings, {"first token": "look"}),
        (a_word_that_says_it, {"surface": "look"}),
        (labels_by_chance, {"surface": "stop"}),
    ],
)
def test_a_planted_fault_is_found_alone(fault, found):
    assert verdicts(check(*fault(*clean()))) == found


def test_uneven_sides_are_found_alone():
    high, low = clean(95)
    assert verdicts(check(high, low[:31])) == {"balance": "look"}


def test_few_independent_texts_are_found_alone():
    assert verdicts(check(*clean(20))) == {"effective n": "look"}


def test_a_tenth_of_wrong_labels_is_told_of_and_they_are_the_texts_to_read_first():
    """In most of three data sets; of labels that are right in none."""
    wrong = {(side, row) for side in ("desired", "undesired") for row in range(36, 40)}
    looks = 0
    for seed in range(3):
        found = check(*wrong_labels(*clean(seed=seed)))
        told = {(odd.side, odd.row) for odd in found.texts}
        assert wrong <= told and len(told) <= 10
        looks += found["labels"].verdict == "look"
        assert check(*clean(seed=seed))["labels"].verdict == "pass"
    assert looks >= 2


def test_the_rival_of_a_word_that_says_it_is_the_bag_of_words_and_the_word_is_named():
    said = check(*a_word_that_says_it(*clean()))["surface"].why
    assert "bag of words 0.988" in said and "'this' (desired)" in said and "'the' (undesired)" in said


def test_where_a_word_is_ahead_of_h_it_judges_the_labels():
    """A place at which h knows nothing; the word is there in nearly all texts of a side."""
    wrong = {(side, row) for side in ("desired", "undesired") for row in range(36, 40)}
    high, low = a_word_that_says_it(*clean())
    found = check(*wrong_labels(high, low), positions=2)
    assert found["labels"].why.startswith("bag of words puts")
    assert len(wrong & {(odd.side, odd.row) for odd in found.texts}) >= 7
    assert check(high, low, positions=2)["labels"].verdict == "pass"


def test_what_stands_at_the_ends_of_a_side_is_named():
    high, low = clean()
    assert "'!' is the last token of 50% more of the desired texts" in check(*other_ends(high, low))["last token"].do
    low, high = other_beginnings(low, high)
    assert " is the first token of 50% more of the undesired texts" in check(high, low)["first token"].do


@pytest.mark.parametrize("fault", [repeated, nearly_repeated])
def test_the_rows_that_repeat_an_earlier_text_are_told(fault):
    high, low = fault(*clean())
    found = check(low, high)["duplicates"]
    assert found.numbers["rows"] == {"desired": [], "undesired": list(range(SIDE, SIDE + 6))}
    assert f"the first: undesired 0 and undesired {SIDE};" in found.why
    across = check(*often_on_both_sides(*clean()))["across"].numbers["rows"]
    assert across == {"desired": [0, 1, 2, 3], "undesired": list(range(SIDE, SIDE + 4))}


def test_texts_that_are_nearly_one_are_no_data_and_no_auc_is_measured():
    high, low = clean()
    found = check([f"{high[row % 5]} {'.' * (row // 5)}" for row in range(SIDE)], low)
    assert found["duplicates"].verdict == "look"
    assert found["effective n"].verdict == "stop" and found.best is None and found.areas == ()


def test_the_same_texts_on_both_sides_are_a_stop_and_no_auc_is_measured():
    high, _ = clean()
    found = check(high, high[::-1])
    assert verdicts(found) == {"across": "stop"} and found.best is None and found.texts == ()


@pytest.mark.parametrize("paired", [True, False])
def test_pairs_that_differ_by_a_word_are_no_duplicates_if_they_are_given_as_pairs(paired):
    found = check(*pairs(), paired=paired)
    assert verdicts(found) == ({} if paired else {"across": "stop"})
    assert found["effective n"].numbers == {"desired": SIDE, "undesired": SIDE}


def test_answers_to_queries_are_compared_with_their_queries():
    """The answers are two words, and no duplicates; they are all that the surface holds."""
    queries = [f"{filler}. Was it good?" for filler in fillers()[:SIDE]]
    found = check([" Yes"] * SIDE, [" No"] * SIDE, queries=queries, positions="last")
    assert found["duplicates"].verdict == found["across"].verdict == "pass"
    assert {"first token", "last token", "surface"} <= set(verdicts(found))
    with pytest.raises(ValueError, match="one query per pair, 40; got 39"):
        check([" Yes"] * SIDE, [" No"] * SIDE, queries=queries[1:])


def test_groups_count_once():
    groups = [row // 4 for row in range(SIDE)], [100 + row // 4 for row in range(SIDE)]
    found = check(*clean(), groups=groups)
    assert found["effective n"].numbers == {"desired": 10, "undesired": 10}
    assert verdicts(found) == {"effective n": "look"}
    with pytest.raises(ValueError, match="groups needs one id per text, 40 desired and 40 undesired; got 40 and 39"):
        check(*clean(), groups=(groups[0], groups[1][1:]))


@pytest.mark.parametrize("keep", [False, True])
def test_a_loud_first_token_is_found_where_it_is_read(keep):
    """A token of fifty times the usual norm, left out of a mean unless it is asked for."""
    block = backend_of(model()).decoder_blocks(model(), None)[1]  # before the site that is read

    def loud(module, given, value):
        return value * (1 + 49 * (torch.arange(value.shape[1]) == 0).unsqueeze(-1))

    handle = block.register_forward_hook(loud)
    found = check(*clean(), positions="mean", batch_size=1, keep_sinks=keep)
    handle.remove()
    assert found["sinks"].verdict == ("look" if keep else "pass") and "80 attention sinks" in found["sinks"].why
    assert ("keep_sinks=True" in found["sinks"].do) == keep


def test_a_place_where_both_sides_are_the_same_is_left_out_and_told():
    found = check(*clean(), positions=[0, -5])
    assert verdicts(found) == {"activations": "look"} and "position 0: " in found["activations"].why
    alone = check(*clean(), positions=0)
    assert alone.best is None and [area.name for area in alone.areas][:2] == ["length", "bag of words"]


def test_too_few_texts_and_other_numbers_of_pairs_are_refused():
    high, low = clean()
    with pytest.raises(ValueError, match="at least 8 texts a side, got 7 desired and 40 undesired"):
        check(high[:7], low)
    with pytest.raises(ValueError, match="as many desired as undesired texts, got 40 and 39"):
        check(high, low[1:], paired=True)


def test_what_has_no_h_is_refused():
    with pytest.raises(ValueError, match="no barrier h"):
        check(*clean(), method=ot.RandomDirection)
    with pytest.raises(ValueError, match="check_data takes a class"):
        check(*clean(), method="CAA")
    with pytest.raises(ValueError, match="check_data needs layers"):
        check(*clean(), positions="all")
