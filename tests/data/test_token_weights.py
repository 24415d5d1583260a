"""Reading positions by weight: the mean that a plain torch hook and einsum give, on every library and from caches."""

import pytest
import torch
from instances import without_shape_checks
from models import KINDS, hugging_face, load
from oracle import LAYER, block

import odesteer_tl as ot
from odesteer_tl.data.activations import ContrastiveActivations

DESIRED = ["the film is truly great", "a fine plot", "good", "we saw it and it was good"]
UNDESIRED = ["the film is bad", "dull and slow", "a bad plot but never again", "never again"]
HOOK = f"blocks.{LAYER}.hook_resid_post"


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return load(request.param, "llama")


@torch.no_grad()
def residual(row):
    seen = []
    handle = block(hugging_face("llama"), LAYER).register_forward_hook(lambda m, a, out: seen.append(out))
    hugging_face("llama")(torch.tensor([row]))
    handle.remove()
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0].double()


def rows_of(side):
    return [tokens[mask].tolist() for tokens, mask in zip(*side, strict=True)]


def drawn(rows, seed=0):
    """Weights from 0 to 1, a quarter of them 0, and never all of a row."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row in rows:
        own = torch.rand(len(row), generator=generator)
        own[:-1][own[:-1] < 0.25] = 0
        found.append(own)
    return found


def expected(rows, weights):
    return torch.stack(
        [torch.einsum("i,id->d", own.double(), residual(row)) / own.double().sum()
         for row, own in zip(rows, weights, strict=True)]
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_text_is_the_weighted_mean_of_its_tokens(model, batch_size):
    left, right = ot.collect(model, DESIRED, UNDESIRED, LAYER).tokens
    own = drawn(rows_of(left)), drawn(rows_of(right), seed=1)
    acts = ot.collect(model, DESIRED, UNDESIRED, LAYER, position=ot.TokenWeights(*own, "mine"), batch_size=batch_size)
    for got, side, weights in ((acts.desired, left, own[0]), (acts.undesired, right, own[1])):
        want = expected(rows_of(side), weights)
        assert float((got.double() - want).norm(dim=1).max() / want.norm(dim=1).min()) <= 1e-5
    assert acts.position == "weights:mine" and acts.groups is None
    assert ot.CAA.fit(acts).origin.position == "weights:mine"


def test_equal_weights_are_the_mean_and_one_weight_is_its_token(model):
    sides = [rows_of(side) for side in ot.collect(model, DESIRED, UNDESIRED, LAYER).tokens]
    equal = ot.TokenWeights(*([torch.full((len(row),), 3.0) for row in rows] for rows in sides))
    last = ot.TokenWeights(*([[0.0] * (len(row) - 1) + [0.1] for row in rows] for rows in sides), "last")
    for given, position in ((equal, "mean"), (last, "last")):
        acts, named = (ot.collect(model, DESIRED, UNDESIRED, LAYER, position=own) for own in (given, position))
        torch.testing.assert_close(acts.desired, named.desired, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(acts.undesired, named.undesired, rtol=1e-5, atol=1e-6)


def test_with_queries_the_tokens_of_answers_alone_count(model):
    queries = ["we saw it", "the plot", "again", "never"]
    answers = [f" {text}" for text in DESIRED], [f" {text}" for text in UNDESIRED]
    plain = ot.collect(model, *answers, LAYER, queries=queries, position="mean")
    weights = ot.TokenWeights(*([[1.0] * len(row) for row in rows_of(side)] for side in plain.tokens))
    acts = ot.collect(model, *answers, LAYER, queries=queries, position=weights)
    torch.testing.assert_close(acts.desired, plain.desired, rtol=1e-5, atol=1e-6)
    assert acts.paired and torch.equal(acts.queries, plain.queries)


def test_caches_are_read_by_weight_too():
    values = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    values[1, 2:] = torch.nan  # pads hold anything
    lengths = [5, 2, 4]
    own = drawn([range(n) for n in lengths])
    acts = ContrastiveActivations.from_caches(
        {HOOK: values}, {HOOK: -values}, LAYER, desired_lengths=lengths, undesired_lengths=lengths,
        position=ot.TokenWeights(own, own),
    )  # fmt: skip
    want = torch.stack([torch.einsum("i,id->d", w, values[i, : len(w)]) / w.sum() for i, w in enumerate(own)])
    torch.testing.assert_close(acts.desired, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(acts.undesired, -want, rtol=1e-5, atol=1e-6)
    assert acts.position == "weights"


def test_attention_sinks_count_nothing_unless_that_is_asked_for():
    values = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    values[:, 0] *= 1000
    caches, lengths = ({HOOK: values}, {HOOK: values + 1}), {"desired_lengths": [8, 8], "undesired_lengths": [8, 8]}
    flat = ot.TokenWeights([[9.0] + [1.0] * 7] * 2, [[9.0] + [1.0] * 7] * 2)
    with pytest.warns(UserWarning, match=r"4 of the 32 tokens that position='weights' names are attention sinks.*left"):
        acts = ContrastiveActivations.from_caches(*caches, LAYER, **lengths, position=flat)
    torch.testing.assert_close(acts.desired, values[:, 1:].mean(1), rtol=1e-5, atol=1e-5)
    kept = ContrastiveActivations.from_caches(*caches, LAYER, **lengths, position=flat, keep_sinks=True)
    torch.testing.assert_close(kept.desired, (9 * values[:, 0] + values[:, 1:].sum(1)) / 16, rtol=1e-5, atol=1e-3)


def test_layers_are_chosen_among_weights_and_names():
    model = load("huggingface", "llama")
    texts = [[f"{text} {word}" for text in side for word in ("film", "plot", "it")] for side in (DESIRED, UNDESIRED)]
    sides = [rows_of(side) for side in ot.collect(model, *texts, LAYER).tokens]
    ramp = ot.TokenWeights(*([[1.0 + place for place in range(len(row))] for row in rows] for rows in sides), "ramp")
    choice = ot.choose_layer(model, *texts, ot.CAA, layers=[0, 1], positions=["last", ramp], progress=False)
    assert {one.position for one in choice.candidates} == {"last", "weights:ramp"}
    acts = ot.collect(model, *texts, 1, position=ramp)
    (at,) = (one for one in choice.candidates if (one.layer, one.position) == (1, "weights:ramp"))
    assert at.auc is not None and acts.position == at.position
    with pytest.raises(ValueError, match="weights of different names"):
        ot.choose_layer(model, *texts, ot.CAA, layers=1, positions=[ramp, ramp])


@without_shape_checks()
def test_weights_that_do_not_fit_are_refused(model):
    rows = rows_of(ot.collect(model, DESIRED, UNDESIRED, LAYER).tokens[0])
    ones = [[1.0] * len(row) for row in rows]
    for given, message in (
        ((ones[:2], ones), "weights for 2 desired texts, but 4 are read"),
        (([*ones[:3], [1.0]], ones), rf"Text 3 of the desired ones has {len(rows[3])} tokens, but 1 weights"),
        (([[0.0] * len(rows[0]), *ones[1:]], ones), "text 0 of the desired ones have weight 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ot.collect(model, DESIRED, UNDESIRED, LAYER, position=ot.TokenWeights(*given))
    for bad in ([[-1.0]], [[float("nan")]], [["a"]], [1.0], [[[1.0]]]):
        with pytest.raises(ValueError, match="weights of text 0 of the desired ones"):
            ot.TokenWeights(bad, [[1.0]])
    with pytest.raises(ValueError, match="letters, digits"):
        ot.TokenWeights([[1.0]], [[1.0]], "../x")
    with pytest.raises(ValueError, match=r"give the ot\.TokenWeights themselves"):
        ot.collect(model, DESIRED, UNDESIRED, LAYER, position="weights:mine")
