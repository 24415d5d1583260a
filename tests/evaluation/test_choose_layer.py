"""The choice of the layer: shifts judged by the plain Hugging Face model under torch hooks, held out, and ranked."""

import math
from itertools import takewhile
from statistics import variance

import pytest
import torch
from instances import without_shape_checks
from models import BACKENDS, load
from scipy.stats import mannwhitneyu

import odesteer_tl as ot
from odesteer_tl.evaluation.judged_texts import FOLDS, JUDGED, LENGTH, _starts, held_out, judged_texts, token_rows
from odesteer_tl.evaluation.place_shifts import middle_place, tied_places
from odesteer_tl.evaluation.shift import Estimate
from odesteer_tl.parity import oracle

HEADS = ["the film is", "a plot is", "we saw it and it was", "truly", "it is"]
GOOD = [f"{head} {word}" for word in ("great", "fine", "good", "never dull") for head in HEADS]
BAD = [f"{head} {word}" for word in ("bad", "dull", "slow", "never great") for head in HEADS]
KL = 0.05


@pytest.fixture(scope="module", params=BACKENDS)
def chosen(request):
    model = load(request.param, "llama")
    before = model_logits(model)
    choice = ot.choose_layer(model, GOOD, BAD, ot.CAA, kl=KL, seed=1)
    assert torch.equal(model_logits(model), before)
    return model, choice


def model_logits(model):
    out = getattr(model, "_module", model)(torch.tensor([[1, 5, 6, 7]]))
    return getattr(out, "logits", out)


def rows_of(model, texts):
    tokens, mask = ot.collect(model, texts, texts, layer=0).tokens[0]
    return [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]


def log_ratio(row, start, method, T):
    """KL at each steered token [tokens], and log q − log p there [tokens, d_vocab], by hooks on one row."""
    where = list(range(start - 1, len(row)))
    p = oracle.logits("llama", row, (), ())[where].double().log_softmax(-1)
    q = oracle.logits("llama", row, oracle.places(method, T), where)[where].double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).detach(), (q - p).detach()


def gain_of(row, start, ratio):
    return sum(float(ratio[at, token]) for at, token in enumerate(row[start:]))


def common(*rows):
    """How many tokens all rows begin with."""
    return len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))))


def starts_of(sides, length):
    """How much of each text is prompt, by comparing it with every text of the other side."""
    of_all = common(*sides[0], *sides[1])
    usual = min(sorted(len(row) for row in side)[(len(side) - 1) // 2] for side in sides) - of_all
    least = of_all + min(usual, length) // 4

    def start(row, others):
        shared = max(common(row, other) for other in others)
        return max(min(max(shared, least), len(row) - 1), 1)

    return [[start(row, sides[1 - side]) for row in sides[side]] for side in (0, 1)]


def median(numbers):
    return sorted(numbers)[(len(numbers) - 1) // 2]


def test_shifts_are_those_of_torch_hooks_at_the_budget(chosen):
    model, choice = chosen
    rows = [rows_of(model, texts) for texts in (GOOD, BAD)]
    measured = [one for one in choice.candidates if one.shift is not None]
    assert len(measured) >= 2 and choice.held_out == (20, 20) and JUDGED >= 5
    every = [held_out(len(GOOD), len(BAD), False, seed=1, fold=fold) for fold in range(FOLDS)]
    assert all(int(sum(masks[side].int() for masks in every).min()) == 1 for side in (0, 1))  # all texts, in turns
    for one in measured:
        acts = ot.collect(model, GOOD, BAD, layer=one.layer, position=one.position)
        assert one.held_out in ((20, 20), (5, 5)) and (one.held_out == (20, 20) or not one.tied)
        folds = every[: one.held_out[0] // 5]
        values, deviations = [], []
        for masks in folds:
            assert [int(mask.sum()) for mask in masks] == [5, 5]
            own, everywhere, gains, off = by_hooks(rows, masks, acts, one.strength.T, masks is folds[0])
            values.append((own, everywhere))
            deviations.append((gains, off))
        own, everywhere = (sum(column) / len(folds) for column in zip(*values, strict=True))
        variances = [
            sum(float(side.var()) / 5 for fold in deviations for side in fold[which]) / len(folds) ** 2
            for which in (1, 0)
        ]
        share = variances[1] / sum(variances)
        assert one.shift == pytest.approx(share * everywhere + (1 - share) * own, abs=2e-3)
        both = [
            share * there + (1 - share) * here
            for gains, off in deviations
            for there, here in zip(off, gains, strict=True)
        ]
        error = math.sqrt(sum(float(side.var()) / 5 for side in both)) / len(folds)
        assert one.shift_error == pytest.approx(error, abs=2e-3)
        masks = folds[0]
        method = ot.CAA.fit(acts._take(*(~mask for mask in masks)))
        high, low = (method.barrier.value(side) for side in (acts._take(*masks).desired, acts._take(*masks).undesired))
        statistic = mannwhitneyu(high, low).statistic / len(high) / len(low)
        assert one.auc == pytest.approx(statistic, abs=1e-6)
        shares = [[mannwhitneyu([a], low).statistic / len(low) for a in high.tolist()],
                  [mannwhitneyu(high, [b]).statistic / len(high) for b in low.tolist()]]  # fmt: skip
        delong = math.sqrt(sum(variance(side) / len(side) for side in shares))
        assert one.auc_error == pytest.approx(delong, abs=1e-6)


def by_hooks(rows, masks, acts, T, at_budget):
    """Of the held-out texts the shift by words in their own places and in all, and what each text adds to both."""
    held = [
        [(row, start) for row, start, out in zip(*of, mask.tolist(), strict=True) if out]
        for *of, mask in zip(rows, starts_of(rows, LENGTH), masks, strict=True)
    ]
    span = min(median([len(row) - start for row, start in side]) for side in held)
    held = [[(row[: start + span], start) for row, start in side] for side in held]
    method = ot.CAA.fit(acts._take(*(~mask for mask in masks)))
    found = [[(*each, *log_ratio(*each, method, T)) for each in side] for side in held]
    if at_budget:
        cost = float(torch.cat([cost for side in found for _, _, cost, _ in side]).mean())
        assert cost == pytest.approx(KL, rel=0.06)
    gains = [torch.tensor([gain_of(row, start, ratio) for row, start, _, ratio in side]) for side in found]
    lift = torch.cat([ratio for side in found for *_, ratio in side]).mean(0)
    words = [[row[start:] for row, start in side] for side in held]
    means = [sum(float(lift[word]) for text in side for word in text) / sum(map(len, side)) for side in words]
    length = sum(len(text) for side in words for text in side) / 10
    off = [
        torch.tensor(
            [sum(float(lift[word]) - mean for word in text) * 5 * length / sum(map(len, side)) for text in side],
            dtype=torch.float64,
        )
        for side, mean in zip(words, means, strict=True)
    ]
    return float(gains[0].mean() - gains[1].mean()), length * (means[0] - means[1]), gains, off


def test_the_middle_of_what_cannot_be_told_apart_is_chosen_and_fitted_on_all_texts(chosen):
    model, choice = chosen
    measured = [one for one in choice.candidates if one.shift is not None]
    tied = [one for one in measured if one.tied]
    assert max(measured, key=lambda one: one.shift) in tied and not any(
        one.tied for one in choice.candidates if one.shift is None
    )
    at = sorted(one.layer for one in tied)
    best = max((one for one in tied if one.layer == at[len(at) // 2]), key=lambda one: one.shift)
    assert best is choice.best and (best.layer, best.position) == (choice.layer, choice.position)
    acts = ot.collect(model, GOOD, BAD, layer=choice.layer, position=choice.position)
    direction = choice.method.vector_field(acts.desired)[0]
    torch.testing.assert_close(direction, ot.CAA.fit(acts).vector_field(acts.desired)[0])
    assert f"Layer {choice.layer}, position {choice.position!r}" in str(choice)
    table = str(choice).splitlines()[2:]
    assert sum(line.endswith("<") for line in table) == 1 and sum(line.endswith("~") for line in table) == len(tied) - 1


def test_places_are_told_apart_by_the_error_of_their_difference():
    """Large errors that both estimates have of the same texts do not hide a difference, small ones of one alone do."""
    shared = torch.tensor([3.0, -3.0])

    def made(value, own):
        return Estimate(value, shared + torch.tensor([own, 0.0]))

    shifts = {
        (2, "last"): made(1.0, 0.0),
        (5, "last"): made(2.0, 0.1),
        (8, "mean"): made(2.1, 0.0),
        (8, "last"): made(2.0, 0.2),
    }
    assert tied_places(shifts) == [(5, "last"), (8, "mean"), (8, "last")] and middle_place(
        shifts, tied_places(shifts)
    ) == (8, "mean")
    shifts[11, "last"] = made(1.0, 0.6)
    assert (11, "last") in tied_places(shifts) and middle_place(shifts, tied_places(shifts)) == (8, "mean")
    shifts |= {(3, "mean"): made(1.9, 0.3), (1, "mean"): made(1.9, 0.3), (4, "mean"): made(1.9, 0.3)}
    assert middle_place(shifts, tied_places(shifts)) == (5, "last")
    shifts[0, "last"] = made(-0.1, 5.0)
    assert (0, "last") not in tied_places(shifts)  # below unsteered


@pytest.mark.parametrize("seed", range(3))
def test_texts_of_unequal_length_are_judged_by_windows_that_are_equal(seed):
    """A push in any direction makes given texts less likely, long ones more so."""
    model = load("huggingface", "llama")
    long = [f"{text} and it is {text} and we saw it and it was {text}" for text in GOOD]
    for sides in ((GOOD, long), (long, GOOD)):
        rows, starts = token_rows(model, *sides, None, None, False, None)
        judged = judged_texts(model, rows, starts, held_out(20, 20, False, seed), False)
        lengths = [max(map(len, side)) for side in judged.windows]
        steered = (judged.steered.texts.mask.sum(1) - judged.steered.texts.prompt_lengths).chunk(2)
        assert lengths[0] == lengths[1] <= max(len(row) for row in rows_of(model, GOOD))
        assert [int(side.max()) for side in steered] == lengths


@pytest.mark.parametrize("seed", range(5))
def test_what_a_text_shares_with_one_of_the_other_side_is_prompt(seed):
    chance = torch.Generator().manual_seed(seed)
    sides = [
        [
            torch.randint(1, 4, (int(length),), generator=chance)
            for length in torch.randint(1, 9, (n,), generator=chance)
        ]
        for n in (12, 9)
    ]
    plain = [[row.tolist() for row in side] for side in sides]
    assert list(_starts((sides[0], sides[1]))) == starts_of(plain, LENGTH)


def test_an_answer_is_judged_and_its_question_is_not_though_the_texts_are_no_pairs():
    model = load("huggingface", "llama")
    sides = [
        [f"{head} {head} it was {word}" for word in words for head in HEADS]
        for words in (("great", "good"), ("bad", "slow"))
    ]
    rows, starts = token_rows(model, *sides, None, None, False, None)
    judged = judged_texts(model, rows, starts, held_out(10, 10, False, 0), False)
    ends = [{int(row[-1]) for row in side} for side in rows]
    words = [{int(word) for text in side for word in text} for side in judged.windows]
    assert words[0] <= ends[0] and words[1] <= ends[1] and not ends[0] & ends[1]
    assert all(len(text) == 1 for side in judged.windows for text in side)


def test_what_all_texts_share_is_not_judged():
    model = load("huggingface", "llama")
    plain = ot.choose_layer(model, GOOD, BAD, ot.CAA, kl=KL, layers=[1], positions="last").best
    opening = "we saw the film and the plot and it was slow and it was dull and " * 3
    choice = ot.choose_layer(
        model, [opening + text for text in GOOD], [opening + text for text in BAD], ot.CAA, kl=KL, layers=1
    )
    assert plain.shift != 0 and all(one.shift != 0 for one in choice.candidates if one.shift is not None)
    with pytest.raises(ValueError, match="have no token after their first one"):
        ot.choose_layer(model, ["good", "great"] * 4, ["bad", "slow"] * 4, ot.CAA, layers=[1], prepend_bos=False)


def test_it_is_repeated_exactly_and_held_out_texts_follow_the_seed():
    model = load("huggingface", "llama")
    tables = [str(ot.choose_layer(model, GOOD, BAD, ot.CAA, kl=KL, seed=seed)).split("\n", 1)[1] for seed in (0, 0, 3)]
    assert tables[0] == tables[1] != tables[2]


def test_pairs_stay_together_and_are_judged_as_pairs():
    model = load("huggingface", "llama")
    queries = [text.rsplit(" ", 1)[0] for text in GOOD]
    good, bad = ([f" {text.rsplit(' ', 1)[1]}" for text in side] for side in (GOOD, BAD))
    bad = [f"{answer} and slow" for answer in bad]  # of several tokens, and unlike the desired ones
    choice = ot.choose_layer(model, good, bad, ot.CAA, queries=queries, layers=[1], positions=["last"], kl=KL)
    (one,) = choice.candidates
    mask, again = held_out(20, 20, True, seed=0)
    assert torch.equal(mask, again)
    acts = ot.collect(model, good, bad, queries=queries, layer=1)
    method, ratios, gains, words = ot.CAA.fit(acts._take(~mask, ~mask)), [], [], []
    for number in mask.nonzero().flatten().tolist():
        start = len(rows_of(model, [queries[number]])[0])
        for tokens, real in acts.tokens:
            row = tokens[number][real[number]].tolist()[: start + 1]  # the desired answers have one token
            ratios.append(log_ratio(row, start, method, one.strength.T)[1])
            gains.append(gain_of(row, start, ratios[-1]))
            words.append(row[start])
    lift = torch.cat(ratios).mean(0)
    own, everywhere = (
        torch.tensor(found, dtype=torch.float64).view(-1, 2) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        for found in (gains, [float(lift[word]) for word in words])
    )
    errors = [float(of.std() / 5**0.5) for of in (everywhere, own)]
    share = errors[1] ** 2 / (errors[0] ** 2 + errors[1] ** 2)
    assert one.shift == pytest.approx(float(share * everywhere.mean() + (1 - share) * own.mean()), abs=2e-3)
    both = share * everywhere + (1 - share) * own
    assert one.shift_error == pytest.approx(float(both.std() / 5**0.5), abs=2e-3)


def test_a_function_fits_and_a_method_without_h_is_ranked_by_its_shift(tmp_path):
    model = load("huggingface", "llama")
    choice = ot.choose_layer(model, GOOD, BAD, lambda acts: ot.LinearAcT.fit(acts), layers=[0, 1], kl=0.01)
    assert isinstance(choice.method, ot.LinearAcT) and {one.layer for one in choice.candidates} == {0, 1}
    choice.plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5_000


def test_fewer_folds_judge_by_fewer_texts_and_find_the_same_in_the_first():
    model, where = load("huggingface", "llama"), {"kl": KL, "seed": 1}
    one, two, four = (ot.choose_layer(model, GOOD, BAD, ot.CAA, folds=folds, **where) for folds in (1, 2, 4))
    assert {of.held_out for of in one.candidates} == {(5, 5)}
    again = [pair for pair in zip(one.candidates, two.candidates, four.candidates, strict=True) if pair[0].tied]
    assert len(again) >= 2 and all((of.held_out, last.held_out) == ((10, 10), (20, 20)) for _, of, last in again)
    once = [pair for pair in zip(one.candidates, four.candidates, strict=True) if not pair[0].tied]
    assert once and all(first.shift == last.shift and first.held_out == last.held_out for first, last in once)
    assert all(first.strength.T == last.strength.T for first, last in zip(one.candidates, four.candidates, strict=True))


def test_a_text_of_one_loud_token_changes_no_fit():
    """The first token of each text has sixty times its norm; the mean of a text of one token is that token."""
    model = load("huggingface", "llama")

    def loud(module, given, value):
        return value * (1 + 59 * (torch.arange(value.shape[1]) == 0).unsqueeze(-1))

    handle = model.model.layers[0].register_forward_hook(loud)
    where = {"layers": [1], "positions": "mean", "kl": KL, "prepend_bos": False}
    with pytest.warns(UserWarning, match="1 of 41 activations have a norm of .* and are left out"):
        choice = ot.choose_layer(model, [*GOOD, "great"], BAD, ot.CAA, **where)
    with pytest.warns(UserWarning, match="40 of the 170 tokens .* are attention sinks .* they are left out"):
        acts = ot.collect(model, GOOD, BAD, layer=1, position="mean", prepend_bos=False)
    handle.remove()
    assert len(choice.acts.desired) == len(GOOD)
    torch.testing.assert_close(choice.method.barrier.weight, ot.CAA.fit(acts).barrier.weight, rtol=1e-4, atol=1e-5)


def test_texts_that_say_nothing_are_told_of():
    model = load("huggingface", "llama")
    with pytest.warns(UserWarning, match="is not above 0 by two standard errors"):
        ot.choose_layer(model, GOOD[::2] + BAD[::2], GOOD[1::2] + BAD[1::2], ot.CAA, kl=0.01, layers=[0, 1], seed=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"desired": GOOD[:7]}, "needs at least 8 a side, got 7 and 20"),
        ({"positions": ["all"]}, 'positions that are "last", "mean", indices or ot.TokenWeights'),
        ({"positions": []}, "needs layers, and positions"),
        ({"layers": []}, "needs layers, and positions"),
        ({"layers": ["1"]}, "layer is a whole number"),
        ({"method": ot.ALQR}, "takes a class that is fitted on activations of one site.*got ALQR"),
        ({"method": ot.GradientFlow}, "got GradientFlow"),
        ({"method": "odesteer"}, "got str"),
        ({"undesired": BAD[:19], "paired": True}, "Pairs need as many desired as undesired texts, got 20 and 19"),
        ({"layers": [1, 9]}, "Layer 9 does not exist"),
        ({"method": lambda acts: ot.Layers(parts=(ot.CAA.fit(acts),))}, "fitted on activations of one site"),
        ({"kl": 1e6}, r"Nowhere does a strength spend 1e\+06 nats"),
        ({"remote": "http://127.0.0.1:1"}, "remote=True needs an nnsight model"),
        ({"kl": -1.0}, "kl is a budget in nats"),
        ({"folds": 5}, "folds is at most 4, the number of quarters; got 5"),
        ({"folds": 0}, "folds is a whole number"),
        ({"method": ot.CAA.fit}, None),
    ],
)
def test_what_cannot_be_chosen_is_refused(given, said):
    model = load("huggingface", "llama")
    arguments = {"desired": GOOD, "undesired": BAD, "method": ot.CAA, "layers": [1], "positions": ["last"]} | given
    if said is None:
        assert ot.choose_layer(model, **arguments).layer == 1
        return
    with without_shape_checks(), pytest.raises(ValueError, match=said):
        ot.choose_layer(model, **arguments)
