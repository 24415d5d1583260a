"""The shift of texts in two ways: laws of each, where they must agree, and a planted answer."""

import pytest
import torch
from models import load

import odesteer_tl as ot
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.judged_texts import JudgedTexts
from odesteer_tl.evaluation.shift import Estimate, combined, in_all_places, in_own_places

WORDS = 12


def judged_of(desired, undesired, pairs=False):
    windows = [[torch.tensor(text) for text in side] for side in (desired, undesired)]
    nothing = SteeredTexts.given(load("huggingface", "llama"), [torch.tensor([1, 5])], torch.tensor([1]))
    return JudgedTexts((windows[0], windows[1]), nothing, (len(desired), len(undesired)), pairs)


def random_side(chance, n, longest=6):
    lengths = torch.randint(1, longest, (n,), generator=chance)
    return [torch.randint(0, WORDS, (int(length),), generator=chance).tolist() for length in lengths]


@pytest.fixture
def chance():
    return torch.Generator().manual_seed(0)


def test_a_lift_of_all_words_alike_is_no_shift_though_one_side_has_longer_texts(chance):
    desired, undesired = random_side(chance, 7, longest=9), random_side(chance, 5)
    lift = torch.randn(WORDS, generator=chance, dtype=torch.float64)
    before, after = (in_all_places(judged_of(desired, undesired), lift + more) for more in (0.0, -3.0))
    assert before.value == pytest.approx(after.value) and before.error == pytest.approx(after.error)
    assert abs(in_all_places(judged_of(desired, undesired), torch.full((WORDS,), -3.0)).value) < 1e-12


def test_sides_change_places_and_texts_their_order(chance):
    desired, undesired = random_side(chance, 7), random_side(chance, 5)
    lift = torch.randn(WORDS, generator=chance)
    one, other = (in_all_places(judged_of(*sides), lift) for sides in ((desired, undesired), (undesired, desired)))
    assert one.value == pytest.approx(-other.value) and one.error == pytest.approx(other.error)
    again = in_all_places(judged_of(desired[::-1], undesired), lift)
    assert again.value == pytest.approx(one.value) and again.error == pytest.approx(one.error)


@pytest.mark.parametrize("pairs", [False, True])
def test_both_ways_agree_where_gains_do_not_depend_on_the_place(chance, pairs):
    sides = [torch.randint(0, WORDS, (6, 4), generator=chance).tolist() for _ in range(2)]
    lift = torch.randn(WORDS, generator=chance, dtype=torch.float64)
    gains = torch.tensor([sum(float(lift[word]) for word in text) for side in sides for text in side])
    judged = judged_of(*sides, pairs=pairs)
    own, everywhere = in_own_places(judged, gains), in_all_places(judged, lift)
    assert own.value == pytest.approx(everywhere.value, abs=1e-5)
    assert own.error == pytest.approx(everywhere.error, abs=1e-5)
    both = combined(own, everywhere)
    assert (both.value, both.error) == pytest.approx((own.value, own.error), abs=1e-5)


def test_the_error_of_all_places_is_that_of_drawing_other_texts(chance):
    """Against many draws of new texts, of unequal lengths, from words of unequal frequency."""
    lift = torch.randn(WORDS, generator=chance, dtype=torch.float64)
    shares = torch.rand(2, WORDS, generator=chance)
    found = []
    for _ in range(400):
        sides = []
        for side in shares:
            lengths = torch.randint(1, 9, (30,), generator=chance).tolist()
            sides.append([side.multinomial(n, replacement=True, generator=chance).tolist() for n in lengths])
        found.append(in_all_places(judged_of(*sides), lift))
    spread = torch.tensor([one.value for one in found]).std()
    assert float(torch.tensor([one.error for one in found]).mean()) == pytest.approx(float(spread), rel=0.12)


def test_the_surer_one_counts_more():
    texts = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    both = combined(Estimate(1.0, 0.1 * texts[0]), Estimate(3.0, 0.2 * texts[1]))
    assert both.value == pytest.approx(0.8 * 1.0 + 0.2 * 3.0)
    assert both.error == pytest.approx(((0.8 * 0.1) ** 2 + (0.2 * 0.2) ** 2) ** 0.5)
    assert combined(Estimate(1.0, 0 * texts[0]), Estimate(3.0, 0 * texts[0])).value == 2.0
    assert combined(Estimate(1.0, 0 * texts[0]), Estimate(3.0, texts[0])).value == 1.0


@pytest.mark.parametrize("pairs", [False, True])
def test_the_error_of_a_difference_is_that_of_the_differences_of_the_texts(chance, pairs):
    sides = [torch.randint(0, WORDS, (n, 4), generator=chance).tolist() for n in (6, 6 if pairs else 9)]
    judged = judged_of(*sides, pairs=pairs)
    gains = torch.randn(2, sum(map(len, sides)), generator=chance, dtype=torch.float64)
    one, other = (in_own_places(judged, of) for of in gains)
    apart = in_own_places(judged, gains[0] - gains[1])
    assert one.error_of_difference(other) == pytest.approx(apart.error) and one.error_of_difference(one) == 0
    high, low = (gains[0] - gains[1])[:6], (gains[0] - gains[1])[6:]
    expected = (high - low).var() / 6 if pairs else high.var() / 6 + low.var() / 9
    assert apart.error == pytest.approx(float(expected.sqrt()))


def test_the_place_is_found_that_raises_the_desired_words():
    """Steering adds the unembedding of the desired words, less that of the undesired ones, at one layer alone; at the
    other it adds the contrary. In a random model the texts say nothing about which."""
    model = load("huggingface", "llama")
    words = {word: model.tokenizer(f"it {word}", add_special_tokens=False).input_ids[-1] for word in ("good", "bad")}
    unembedding = model.get_output_embeddings().weight.detach()
    planted = unembedding[words["good"]] - unembedding[words["bad"]]
    heads = ["the film is", "a plot is", "we saw it and it was", "truly it was", "it is", "that is"]
    fillers = ("slow", "dull", "fine")
    good, bad = ([f"{head} {say} and {word} and {word}" for head in heads for say in fillers] for word in words)
    for right in (0, 1):

        def fit(acts, right=right):
            way = planted if acts.layer == right else -planted
            return ot.RandomDirection(way / way.norm(), acts.origin)

        choice = ot.choose_layer(model, good, bad, fit, layers=[0, 1], positions="last", kl=0.01)
        shifts = {one.layer: one.shift for one in choice.candidates if one.shift is not None}
        assert choice.layer == right and shifts[right] > 0 and all(shifts[at] < 0 for at in shifts if at != right)
