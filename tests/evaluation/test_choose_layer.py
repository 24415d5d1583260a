"""The choice of the layer: shifts judged by the plain Hugging Face model under torch hooks, held out, and ranked."""

import math

import pytest
import torch
from instances import without_shape_checks
from models import BACKENDS, load
from scipy.stats import mannwhitneyu

import odesteer_tl as ot
from odesteer_tl.evaluation.judged_texts import JUDGED, held_out, judged_texts, token_rows
from odesteer_tl.evaluation.root_search import near_crossing
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


def cost_and_gain(row, start, method, T):
    """KL at each steered token, and the gain of the text that follows, by hooks on one row."""
    where = list(range(start - 1, len(row)))
    p = oracle.logits("llama", row, (), ())[where].double().log_softmax(-1)
    q = oracle.logits("llama", row, oracle.places(method, T), where)[where].double().log_softmax(-1)
    following = torch.tensor(row[start:]).unsqueeze(1)
    gain = (q[:-1].gather(1, following) - p[:-1].gather(1, following)).sum()
    return (p.exp() * (p - q)).sum(-1).detach(), float(gain.detach())


def test_shifts_are_those_of_torch_hooks_at_the_budget(chosen):
    model, choice = chosen
    masks = held_out(len(GOOD), len(BAD), False, seed=1)
    assert [int(mask.sum()) for mask in masks] == [5, 5] and choice.held_out == (5, 5) and JUDGED >= 5
    held = [
        rows_of(model, [text for text, out in zip(texts, mask.tolist(), strict=True) if out])
        for texts, mask in zip((GOOD, BAD), masks, strict=True)
    ]
    every = rows_of(model, [*GOOD, *BAD])
    shared = next(n for n in range(9) if len({row[n] for row in every}) > 1)  # the BOS, where there is one
    span = min(sorted(len(row) - shared for row in side)[2] for side in held)
    start = max(shared + span // 4, 1)
    measured = [one for one in choice.candidates if one.shift is not None]
    assert len(measured) >= 2
    for one in measured:
        acts = ot.collect(model, GOOD, BAD, layer=one.layer, position=one.position)
        method = ot.CAA.fit(acts._take(*(~mask for mask in masks)))
        costs, gains = [], []
        for side in held:
            each = [cost_and_gain(row[: shared + span], start, method, one.strength.T) for row in side]
            costs += [cost for cost, _ in each]
            gains.append(torch.tensor([gain for _, gain in each], dtype=torch.float64))
        assert float(torch.cat(costs).mean()) == pytest.approx(KL, rel=0.06)
        assert one.shift == pytest.approx(float(gains[0].mean() - gains[1].mean()), abs=2e-3)
        error = math.sqrt(sum(float(of.var()) / len(of) for of in gains))
        assert one.shift_error == pytest.approx(error, abs=2e-3)
        high, low = (method.barrier.value(side) for side in (acts._take(*masks).desired, acts._take(*masks).undesired))
        statistic = mannwhitneyu(high, low).statistic / len(high) / len(low)
        assert one.auc == pytest.approx(statistic, abs=1e-6)


def test_the_largest_shift_that_is_shown_is_chosen_and_fitted_on_all_texts(chosen):
    model, choice = chosen
    measured = [one for one in choice.candidates if one.shift is not None]
    best = max(measured, key=lambda one: one.shift - 2 * one.shift_error)
    assert best is choice.best and (best.layer, best.position) == (choice.layer, choice.position)
    acts = ot.collect(model, GOOD, BAD, layer=choice.layer, position=choice.position)
    direction = choice.method.vector_field(acts.desired)[0]
    torch.testing.assert_close(direction, ot.CAA.fit(acts).vector_field(acts.desired)[0])
    assert f"Layer {choice.layer}, position {choice.position!r}" in str(choice) and str(choice).count("<") == 1


@pytest.mark.parametrize("seed", range(3))
def test_texts_of_unequal_length_are_judged_by_windows_that_are_equal(seed):
    """A push in any direction makes given texts less likely, long ones more so."""
    model = load("huggingface", "llama")
    long = [f"{text} and it is {text} and we saw it and it was {text}" for text in GOOD]
    for sides in ((GOOD, long), (long, GOOD)):
        rows, starts = token_rows(model, *sides, None, None, False, None)
        first, second = (torch.nonzero(side).flatten().tolist() for side in held_out(20, 20, False, seed))
        texts = judged_texts(model, rows, starts, (first, second), False)
        lengths = (texts.texts.mask.sum(1) - texts.texts.prompt_lengths).chunk(2)
        assert abs(int(lengths[0].max()) - int(lengths[1].max())) == 0
        assert int(lengths[0].max()) <= max(len(row) for row in rows_of(model, GOOD))


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
    method, differences = ot.CAA.fit(acts._take(~mask, ~mask)), []
    for number in mask.nonzero().flatten().tolist():
        start = len(rows_of(model, [queries[number]])[0])
        gains = []
        for tokens, real in acts.tokens:
            row = tokens[number][real[number]].tolist()[: start + 1]  # the desired answers have one token
            gains.append(cost_and_gain(row, start, method, one.strength.T)[1])
        differences.append(gains[0] - gains[1])
    differences = torch.tensor(differences, dtype=torch.float64)
    assert one.shift == pytest.approx(float(differences.mean()), abs=2e-3)
    assert one.shift_error == pytest.approx(float(differences.std() / 5**0.5), abs=2e-3)


def test_a_function_fits_and_a_method_without_h_is_ranked_by_its_shift(tmp_path):
    model = load("huggingface", "llama")
    choice = ot.choose_layer(model, GOOD, BAD, lambda acts: ot.LinearAcT.fit(acts), layers=[0, 1], kl=0.01)
    assert isinstance(choice.method, ot.LinearAcT) and {one.layer for one in choice.candidates} == {0, 1}
    choice.plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5_000


def test_texts_that_say_nothing_are_told_of():
    model = load("huggingface", "llama")
    with pytest.warns(UserWarning, match="is not above 0 by two standard errors"):
        ot.choose_layer(model, GOOD[::2] + BAD[::2], GOOD[1::2] + BAD[1::2], ot.CAA, kl=0.01, layers=[0, 1], seed=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"desired": GOOD[:7]}, "needs at least 8 a side, got 7 and 20"),
        ({"positions": ["all"]}, 'positions that are "last", "mean" or indices'),
        ({"positions": []}, "needs layers, and positions"),
        ({"layers": []}, "needs layers, and positions"),
        ({"layers": ["1"]}, "layer is a whole number"),
        ({"method": ot.ALQR}, "takes a class that is fitted on activations of one site.*got ALQR"),
        ({"method": ot.GradientFlow}, "got GradientFlow"),
        ({"method": "odesteer"}, "got str"),
        ({"undesired": BAD[:19], "paired": True}, "Pairs need as many desired as undesired texts, got 20 and 19"),
        ({"layers": [1, 9]}, "layer=9 does not exist"),
        ({"method": lambda acts: ot.Layers(parts=(ot.CAA.fit(acts),))}, "fitted on activations of one site"),
        ({"kl": 1e6}, r"Nowhere does a strength spend 1e\+06 nats"),
        ({"kl": -1.0}, "kl is a budget in nats"),
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
