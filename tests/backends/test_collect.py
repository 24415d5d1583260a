"""Collecting activations: the same numbers alone, in a batch, padded left or right, and no layer run in vain."""

import pytest
import torch
from instances import without_shape_checks
from models import FAMILIES, KINDS, hugging_face, load
from oracle import LAYER, block

import odesteer_tl as ot
from odesteer_tl.backends import processing_of, tokenise
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.collect import collect_places

DESIRED = ["the film is truly great", "a fine plot", "good", "we saw it and it was good"]
UNDESIRED = ["the film is bad", "dull and slow", "a bad plot but never again"]
RANDOM = [family for family in FAMILIES if family != "stories260K"]


@pytest.fixture(scope="module", params=[(kind, family) for kind in KINDS for family in RANDOM], ids="-".join)
def loaded(request):
    return request.param[1], load(*request.param)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return load(request.param, "llama")


@torch.no_grad()
def residual(family, row):
    """resid_post [pos, d_model] of one unpadded row, by a torch hook on the Hugging Face model."""
    seen = []
    handle = block(hugging_face(family), LAYER).register_forward_hook(lambda m, a, out: seen.append(out))
    hugging_face(family)(torch.tensor([row]))
    handle.remove()
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0]


def distance(a, b):
    """The largest distance of two activations, relative to their length."""
    return ((a - b).norm(dim=1) / b.norm(dim=1)).max().item()


@pytest.mark.parametrize("position", ["last", "mean", "all", 0, -2])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_activations_are_those_of_each_text_alone(loaded, position, batch_size):
    family, model = loaded
    acts = ot.collect(model, DESIRED, UNDESIRED, LAYER, position=position, batch_size=batch_size)
    rows = [tokens[mask].tolist() for tokens, mask in zip(*acts.tokens[0], strict=True)]
    alone = [residual(family, row) for row in rows]
    pick = {"last": lambda a: a[-1:], "mean": lambda a: a.mean(0, keepdim=True), "all": lambda a: a}
    take = pick.get(position, lambda a: a[position].unsqueeze(0))
    assert distance(acts.desired, torch.cat([take(a) for a in alone])) <= 1e-5
    assert acts.hook_name == "blocks.1.hook_resid_post" and acts.position == position


@pytest.mark.parametrize("batch_size", [1, 3])
def test_random_tokens_are_distinct_tokens_of_their_text_in_any_batch(loaded, batch_size):
    family, model = loaded
    acts = ot.collect(model, DESIRED, UNDESIRED, LAYER, position="random:2", batch_size=batch_size)
    again = ot.collect(model, DESIRED[::-1], UNDESIRED, LAYER, position="random:2")
    ids, start = acts.groups[0], 0
    for text, (tokens, mask) in enumerate(zip(*acts.tokens[0], strict=True)):
        alone = residual(family, tokens[mask].tolist())
        count = min(2, len(alone))
        mine = acts.desired[start : start + count]
        start += count
        nearest = torch.cdist(mine, alone).argmin(1)
        assert len(nearest.unique()) == count and distance(mine, alone[nearest]) <= 1e-5
        assert int((ids == text).sum()) == count
        other = again.desired[again.groups[0] == len(DESIRED) - 1 - text]
        assert distance(mine, other) <= 1e-5
    assert start == len(acts.desired) and acts.position == "random:2"
    with pytest.raises(ValueError, match="draws other tokens"):
        ot.collect(model, DESIRED[:3], UNDESIRED, LAYER, position="random:2", paired=True)
    with pytest.raises(ValueError, match="random:3"):
        ot.collect(model, DESIRED, UNDESIRED, LAYER, position="random:0")


def test_padding_side_does_not_matter_and_masks_say_what_is_read(loaded):
    _, model = loaded
    left = tokenise(model, DESIRED)
    rows = [tokens[mask].tolist() for tokens, mask in zip(*left, strict=True)]
    width = max(map(len, rows))
    right = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    declared = ot.Tokenised(right, right != 0)
    mine = ot.collect(model, declared, UNDESIRED, LAYER)
    assert distance(mine.desired, ot.collect(model, DESIRED, UNDESIRED, LAYER).desired) <= 1e-5
    assert torch.equal(mine.tokens[0].tokens, left.tokens) and torch.equal(mine.tokens[0].mask, left.mask)
    with pytest.raises(ValueError, match=r"ot\.Tokenised"):
        ot.collect(model, right, UNDESIRED, LAYER)
    equal = torch.tensor(rows[1:2] * 2)
    assert torch.equal(*ot.collect(model, equal, UNDESIRED, LAYER).desired)


def test_layers_after_the_one_read_are_not_run(model):
    runs = []
    handles = [
        block.register_forward_hook(lambda module, args, output, i=i: runs.append(i))
        for i, block in enumerate(model.blocks)
    ]
    ot.collect(model, DESIRED, UNDESIRED, 0)
    for handle in handles:
        handle.remove()
    assert set(runs) == {0}


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_float32_whatever_the_model_computes_in(kind):
    model = load(kind, "llama", dtype=torch.bfloat16)
    acts = ot.collect(model, DESIRED, UNDESIRED, LAYER)
    exact = ot.collect(load(kind, "llama"), DESIRED, UNDESIRED, LAYER)
    assert acts.desired.dtype == torch.float32
    assert 0 < (acts.desired - exact.desired).norm() / exact.desired.norm() < 0.05


def test_each_text_is_a_group_when_all_its_tokens_are_read(model):
    acts = ot.collect(model, DESIRED, UNDESIRED, LAYER, position="all")
    lengths = [side.mask.sum(1) for side in acts.tokens]
    ids = torch.arange(7).repeat_interleave(torch.cat(lengths))
    assert torch.equal(torch.cat(acts.groups), ids)
    own = ot.collect(model, DESIRED, UNDESIRED, LAYER, position="all", groups=([5, 5, 6, 6], [7, 7, 5]))
    assert torch.equal(own.groups[0], torch.tensor([5, 5, 6, 6]).repeat_interleave(lengths[0]))


def test_hooks_of_the_user_act_and_stay(model):
    plain = ot.collect(model, DESIRED, UNDESIRED, LAYER).desired
    calls = []

    def shift(value, hook):
        calls.append(hook)
        return value + 1

    model.add_hook("blocks.0.hook_resid_post", shift)
    try:
        shifted = ot.collect(model, DESIRED, UNDESIRED, LAYER).desired
        before = len(calls)
        model(torch.tensor([[1, 5]]))
        assert len(calls) == before + 1
    finally:
        model.reset_hooks()
    assert not torch.allclose(plain, shifted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_processing_of_the_weights_is_recorded(kind):
    assert processing_of(load(kind, "gpt2")) == processing_of(load(kind, "llama")) == "raw"
    assert processing_of(load(kind, "llama", compatible=True)) == "folded"
    centred = load(kind, "gpt2", compatible=True)
    acts = ot.collect(centred, DESIRED, UNDESIRED, LAYER)
    assert acts.processing == "centred" and acts.model_name == centred.cfg.model_name != ""
    assert acts.desired.mean(1).abs().max() < 1e-5


def test_tokens_are_the_librarys_own_and_bos_comes_once(model):
    for prepend_bos in (True, False):
        for text in DESIRED:
            own = model.to_tokens(text, prepend_bos=prepend_bos)
            assert torch.equal(tokenise(model, text, prepend_bos=prepend_bos).tokens, own)
    assert tokenise(model, "<s> good").tokens.tolist() == tokenise(model, "good").tokens.tolist() == [[1, 10]]
    assert tokenise(model, "good", prepend_bos=False).tokens.tolist() == [[10]]


def test_chat_templates_render_one_user_message_and_decide_on_the_bos(model):
    template = "<s> {{ messages[0]['content'] }}{% if add_generation_prompt %} the{% endif %}"
    assert tokenise(model, "good", chat_template=template).tokens.tolist() == [[1, 10, 4]]
    assert tokenise(model, "good", chat_template=lambda text: f"a {text}").tokens.tolist() == [[5, 10]]
    assert tokenise(model, "good", chat_template=lambda text: text, prepend_bos=True).tokens.tolist() == [[1, 10]]
    with pytest.raises(ValueError, match="no chat template"):
        tokenise(model, "good", chat_template=True)
    model.tokenizer.chat_template = template
    try:
        assert tokenise(model, "good", chat_template=True).tokens.tolist() == [[1, 10, 4]]
    finally:
        model.tokenizer.chat_template = None


@pytest.mark.parametrize(
    "change, says",
    [
        ({"desired": []}, "No text"),
        ({"desired": ["good", ""], "prepend_bos": False}, "Text 1 .* has no tokens"),
        ({"desired": ["good " * 70]}, "71 tokens; the model holds 64"),
        ({"layer": 3}, "layers 0 to 2"),
        ({"layer": -1}, "layers 0 to 2"),
        ({"batch_size": 0}, "batch_size"),
        ({"position": 9}, "lies outside row"),
        ({"groups": ([1, 2], [3, 4, 5])}, "groups needs one id per text, 4 desired and 3 undesired; got 2 and 3"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(model, change, says):
    with pytest.raises(ValueError, match=says):
        ot.collect(model, **{"desired": DESIRED, "undesired": UNDESIRED, "layer": LAYER, **change})


def test_other_models_are_refused_and_told_what_is_supported():
    with pytest.raises(ValueError, match="HookedTransformer or a TransformerBridge"):
        ot.collect(torch.nn.Linear(2, 2), DESIRED, UNDESIRED, LAYER)


def test_a_model_without_tokenizer_reads_tokens_alone(model, monkeypatch):
    texts = ot.collect(model, DESIRED, UNDESIRED, LAYER)
    monkeypatch.setattr(model, "tokenizer", None)
    assert torch.equal(ot.collect(model, *texts.tokens, LAYER).desired, texts.desired)
    with pytest.raises(ValueError, match="no tokenizer"):
        ot.collect(model, DESIRED, UNDESIRED, LAYER)


def test_the_masks_of_hugging_face_are_read_as_masks():
    model = load("bridge", "llama")
    texts = ["the film is good", "bad", "we saw it"]
    out = model.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    whole = ot.collect(model, texts, texts[:1], 1, prepend_bos=False)
    same = ot.collect(model, ot.Tokenised(out.input_ids, out.attention_mask), texts[:1], 1, prepend_bos=False)
    torch.testing.assert_close(same.desired, whole.desired, atol=1e-5, rtol=1e-5)
    with without_shape_checks(), pytest.raises(ValueError, match=r"ot\.Tokenised"):
        ot.collect(model, out, texts, 1)
    empty = torch.tensor([[True, True], [False, False]])
    for wrong in (ot.Tokenised(torch.ones(2, 2).long(), empty), ot.Tokenised(torch.ones(2, 2).long(), empty[:, :1])):
        with pytest.raises(ValueError, match="Tokenised needs tokens and mask"):
            ot.generate(model, wrong, max_new_tokens=1)
    with pytest.raises(ValueError, match="model holds 64"):
        ot.generate(model, "the film", max_new_tokens=63)
    with pytest.raises(ValueError, match="needs an nnsight model"):
        ot.generate(model, "the film", remote=True)


def test_the_tokens_of_a_pair_stay_on_one_side_of_a_split():
    acts = ot.collect(
        load("bridge", "llama"), ["the film", "we saw it", "good"], ["a plot", "it was bad", "dull"], 1,
        position="all", paired=False,
    )  # fmt: skip
    fit, held_out = acts.split(fraction=0.67)
    assert not set(torch.cat(fit.groups).tolist()) & set(torch.cat(held_out.groups).tolist())
    pairs = ot.collect(
        load("bridge", "llama"), ["the film", "we saw it", "good"], ["a plot", "was it bad", "dull"], 1,
        position="all", paired=True,
    )  # fmt: skip
    fit, held_out = pairs.split(fraction=0.67)
    assert torch.equal(*fit.groups) and torch.equal(*held_out.groups)


QUERIES = ["we saw the film", "the plot"]
ANSWERS = ["it was good", "never dull"], ["bad", "slow and dull but good"]


@pytest.mark.parametrize("position", ["last", "mean", 0, -1])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_answers_are_read_after_their_queries_and_without_them(loaded, position, batch_size):
    family, model = loaded
    acts = ot.collect(model, *ANSWERS, LAYER, queries=QUERIES, position=position, batch_size=batch_size)
    assert acts.paired and acts.queries is not None
    pick = {"last": lambda a: a[-1], "mean": lambda a: a.mean(0)}.get(position, lambda a: a[position])
    asked = [tokenise(model, query).tokens[0].tolist() for query in QUERIES]
    for side, answers in zip((acts.desired, acts.undesired), ANSWERS, strict=True):
        for found, query, answer in zip(side, asked, answers, strict=True):
            then = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
            expected = pick(residual(family, query + then)[len(query) :])
            assert distance(found.unsqueeze(0), expected.unsqueeze(0)) <= 1e-5
    alone = torch.stack([residual(family, query)[-1] for query in asked])
    assert distance(acts.queries, alone) <= 1e-5


def test_pairs_with_queries_that_cannot_be_are_refused(model):
    with without_shape_checks():
        with pytest.raises(ValueError, match="one desired and one undesired answer"):
            ot.collect(model, ANSWERS[0], ANSWERS[1][:1], LAYER, queries=QUERIES)
        with pytest.raises(ValueError, match='not "all"'):
            ot.collect(model, *ANSWERS, LAYER, queries=QUERIES, position="all")
        with pytest.raises(ValueError, match="outside row"):
            ot.collect(model, *ANSWERS, LAYER, queries=QUERIES, position=3)


def test_a_chat_template_is_the_querys(model):
    plain = ot.collect(model, *ANSWERS, LAYER, queries=["the film: " + q for q in QUERIES])
    said = ot.collect(
        model, *ANSWERS, LAYER, queries=QUERIES, chat_template=lambda q: "the film: " + q, prepend_bos=True
    )
    assert torch.equal(said.queries, plain.queries) and torch.equal(said.desired, plain.desired)


def test_several_positions_are_read_in_the_same_passes(model):
    """The same activations as one position at a time; on nnsight in a pass for each position."""
    places = ["last", "mean", "all", "random:2", -1]
    own = {"queries": None, "prepend_bos": None, "chat_template": False, "system": None, "paired": False}
    backend, passes = backend_of(model), []
    handle = backend.decoder_blocks(model, None)[0].register_forward_pre_hook(lambda *_: passes.append(1))
    together = collect_places(
        model, DESIRED, UNDESIRED, [0, 1], places, batch_size=3, progress=False, blocks=None, **own
    )  # fmt: skip
    handle.remove()
    assert len(passes) == 3 * (len(places) if backend.library == "nnsight" else 1)  # 2 + 1 batches
    for position, of_layers in zip(places, together, strict=True):
        alone = ot.collect_layers(model, DESIRED, UNDESIRED, [0, 1], position=position, batch_size=3)
        for one, other in zip(of_layers, alone, strict=True):
            assert torch.equal(one.desired, other.desired) and torch.equal(one.undesired, other.undesired)
            assert (one.layer, one.position) == (other.layer, other.position)
