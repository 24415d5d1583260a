"""Attention sinks: told by their norm, left out of means, and never read without a word.

The models have real sinks: the embeddings of two tokens, the BOS and one word, are made 3,000 times as long. The oracle
knows which these are by their ids, and reads each text alone with a torch hook.
"""

import copy
import warnings

import pytest
import torch
from models import BACKENDS, hugging_face, tokenizer
from oracle import LAYER, block
from server_clients import client, installed_wheel, server

import odesteer_tl as ot
from odesteer_tl.data.tokens import read_sites
from odesteer_tl.parity import models as made
from odesteer_tl.portable.attention_sinks import kept_of, sinks_among

BOS, NEVER = 1, 4 + made.WORDS.index("never")
SINKS = (BOS, NEVER)
DESIRED = ["the film is truly great", "a fine plot never dull", "good", "we saw it and it was good"]
UNDESIRED = ["the film is bad", "dull and never never slow", "a bad plot but never again"]
LOADERS = {"bridge": made.as_bridge, "hooked": made.as_hooked, "nnsight": made.as_nnsight}


def with_sinks():
    hf = copy.deepcopy(hugging_face("llama"))
    hf.model.embed_tokens.weight.data[list(SINKS)] *= 3000
    return hf


@pytest.fixture(scope="module", params=BACKENDS)
def model(request):
    return LOADERS[request.param](with_sinks(), tokenizer())


@torch.no_grad()
def residuals(hf, texts):
    """For each text alone, BOS first, its ids and its resid_post [pos, d_model]."""
    found = []
    for text in texts:
        seen = []
        handle = block(hf, LAYER).register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        ids = [BOS, *tokenizer()(text, add_special_tokens=False)["input_ids"]]
        hf(torch.tensor([ids]))
        handle.remove()
        found.append((torch.tensor(ids), (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0]))
    return found


def by_hand(texts, left_out=SINKS):
    """The activations of each text without the tokens of those ids."""
    return [a[~torch.isin(ids, torch.tensor(left_out))] for ids, a in residuals(with_sinks(), texts)]


def collected(model, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        acts = ot.collect(model, DESIRED, UNDESIRED, LAYER, prepend_bos=True, **options)
    return acts, [str(each.message) for each in said if "attention sink" in str(each.message)]


def test_the_oracle_has_sinks():
    norms = [(ids, a.norm(dim=1)) for ids, a in residuals(with_sinks(), DESIRED + UNDESIRED)]
    is_sink = torch.cat([torch.isin(ids, torch.tensor(SINKS)) for ids, _ in norms])
    sizes = torch.cat([n for _, n in norms])
    assert sizes[is_sink].min() > 8 * sizes[~is_sink].max()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_mean_is_that_of_the_other_tokens(model, batch_size):
    acts, said = collected(model, position="mean", batch_size=batch_size)
    for side, texts in ((acts.desired, DESIRED), (acts.undesired, UNDESIRED)):
        torch.testing.assert_close(side, torch.stack([a.mean(0) for a in by_hand(texts)]), rtol=1e-4, atol=1e-3)
    # BOS in each of the seven texts, and "never" once in a desired and three times in the undesired ones
    count = sum(len(ids) for ids, _ in residuals(with_sinks(), DESIRED + UNDESIRED))
    (message,) = said
    assert f"At blocks.{LAYER}.hook_resid_post 11 of the {count} tokens that position='mean' names" in message
    assert "7 the first token of their text, 4 later ones: '<s>', 'never'" in message
    assert "they are left out. keep_sinks=True reads them" in message and "skip=1" in message
    norms = torch.cat([a.mean(0, keepdim=True) for a in by_hand(DESIRED + UNDESIRED)]).norm(dim=1)
    assert acts.origin.typical_norm == pytest.approx(float(norms.median()), rel=1e-4)


def test_a_text_gives_the_same_alone_and_in_any_company(model):
    together, _ = collected(model, position="mean", batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n, text in enumerate(DESIRED):
            alone = ot.collect(model, [text], [UNDESIRED[0]], LAYER, position="mean", prepend_bos=True)
            torch.testing.assert_close(alone.desired[0], together.desired[n], rtol=1e-4, atol=1e-3)


def test_all_tokens_are_the_others(model):
    acts, said = collected(model, position="all")
    for side, texts, groups in zip((acts.desired, acts.undesired), (DESIRED, UNDESIRED), acts.groups, strict=True):
        rows = by_hand(texts)
        torch.testing.assert_close(side, torch.cat(rows), rtol=1e-4, atol=1e-3)
        apart = 0 if texts is DESIRED else len(DESIRED)
        assert groups.tolist() == [n + apart for n, row in enumerate(rows) for _ in row]
    assert len(said) == 1


def test_with_several_layers_all_tokens_are_the_same_rows(model):
    """The BOS has lost nothing at layer 0 or 2: at each the same tokens are left out, and rows agree."""
    with pytest.warns(UserWarning, match=r"and 1 more of the sites read"):
        acts = ot.collect_layers(model, DESIRED, UNDESIRED, [LAYER, 0], position="all", prepend_bos=True)
    assert len({each.desired.shape for each in acts}) == 1
    torch.testing.assert_close(acts[0].desired, torch.cat(by_hand(DESIRED)), rtol=1e-4, atol=1e-3)


def test_a_sink_of_one_site_is_left_out_of_all_tokens_at_each_and_of_its_own_mean_alone():
    """Token 0 is a sink at the first site, token 2 at the second."""
    one, other = torch.ones(2, 1, 5, 4).unbind()
    one, other = one.clone(), other.clone()
    one[:, 0] *= 100
    other[:, 2] *= 100
    mask = torch.ones(1, 5, dtype=torch.bool)
    (first, second), rows, met = read_sites([one, other], mask, mask, "all", False)
    assert torch.equal(first, torch.ones(3, 4)) and torch.equal(second, torch.ones(3, 4)) and rows.tolist() == [0] * 3
    assert [each.read.tolist() for each in met] == [[False, True, False, True, True]] * 2
    means, _, met = read_sites([one, other], mask, mask, "mean", False)
    assert all(torch.equal(each, torch.ones(1, 4)) for each in means)
    assert [each.read.tolist().index(False) for each in met] == [0, 2] and [int(e.read.sum()) for e in met] == [4, 4]


def test_sinks_are_kept_where_that_is_asked_for(model):
    for position, pick in (("mean", lambda a: a.mean(0, keepdim=True)), ("all", lambda a: a), (0, lambda a: a[:1])):
        acts, said = collected(model, position=position, keep_sinks=True)
        rows = torch.cat([pick(a) for a in by_hand(DESIRED, left_out=())])
        torch.testing.assert_close(acts.desired, rows, rtol=1e-4, atol=1e-2)
        assert not said


def test_leading_and_special_tokens_are_skipped(model):
    one, said = collected(model, position="mean", skip=1)
    special, _ = collected(model, position="mean", skip="special")
    assert len(said) == 1 and "4 of the" in said[0]  # "never" remains a sink
    expected = torch.stack([a.mean(0) for a in by_hand(UNDESIRED)])
    torch.testing.assert_close(one.undesired, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(special.undesired, expected, rtol=1e-4, atol=1e-3)
    with_never = torch.stack([a.mean(0) for a in by_hand(UNDESIRED, left_out=(BOS,))])
    for skip in (1, "special"):
        kept, _ = collected(model, position="mean", skip=skip, keep_sinks=True)
        torch.testing.assert_close(kept.undesired, with_never, rtol=1e-4, atol=1e-2)
    second, _ = collected(model, position=0, skip=1)
    expected = torch.stack([a[0] for a in by_hand(DESIRED, left_out=(BOS,))])
    torch.testing.assert_close(second.desired, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (2, r"skip=2 leaves no token of text 2 to read: skip less, or drop that text"),
        (-1, r'skip is the number of tokens to leave out per text, 0 or more, or "special"; got -1'),
    ],
)
def test_a_skip_that_leaves_nothing_is_refused(model, skip, message):
    with pytest.raises(ValueError, match=message):
        ot.collect(model, DESIRED, UNDESIRED, LAYER, skip=skip, prepend_bos=True)


def test_an_index_that_reads_a_sink_says_so(model):
    acts, (message,) = collected(model, position=0)
    torch.testing.assert_close(acts.desired, torch.stack([a[0] for a in by_hand(DESIRED, ())]), rtol=1e-4, atol=1e-2)
    assert "7 of the 7 tokens that position=0 names are attention sinks" in message
    assert "a fit on them describes the sink and not the text" in message and "pass keep_sinks=True" in message
    assert not collected(model, position="last")[1]


def test_answers_are_read_without_their_sinks(model):
    queries = ["we saw the film and", "the plot was", "it is"]
    good, bad = ["never dull", "truly great", "never"], ["bad", "slow and never", "dull"]
    with pytest.warns(UserWarning, match=r"1 of them are read, as their texts have nothing else"):
        acts = ot.collect(model, good, bad, LAYER, queries=queries, position="mean", prepend_bos=True)
    whole = residuals(with_sinks(), [f"{q} {a}" for q, a in zip(queries, good, strict=True)])
    first = [1 + len(q.split()) for q in queries]
    for n, ((ids, a), start) in enumerate(zip(whole, first, strict=True)):
        answer = a[start:]
        kept = answer if n == 2 else answer[ids[start:] != NEVER]  # the third answer is the sink and no more
        torch.testing.assert_close(acts.desired[n], kept.mean(0), rtol=1e-4, atol=1e-2)


def test_caches_are_read_without_their_sinks():
    hook = f"blocks.{LAYER}.hook_resid_post"
    caches, lengths = [], []
    for texts in (DESIRED, UNDESIRED):
        rows = [a for _, a in residuals(with_sinks(), texts)]
        caches.append({hook: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1e9)})
        lengths.append([len(row) for row in rows])
    given = {"desired_lengths": lengths[0], "undesired_lengths": lengths[1], "position": "mean"}
    with pytest.warns(
        UserWarning, match=r"11 of the \d+ tokens that position='mean' names are attention sinks, of norm"
    ):
        acts = ot.ContrastiveActivations.from_caches(*caches, layer=LAYER, **given)
    torch.testing.assert_close(
        acts.undesired, torch.stack([a.mean(0) for a in by_hand(UNDESIRED)]), rtol=1e-4, atol=1e-3
    )
    kept = ot.ContrastiveActivations.from_caches(*caches, layer=LAYER, **given, keep_sinks=True)
    expected = torch.stack([a.mean(0) for a in by_hand(UNDESIRED, ())])
    torch.testing.assert_close(kept.undesired, expected, rtol=1e-4, atol=1e-2)


def test_a_caa_vector_is_no_longer_the_sink(model):
    """The fault that this mends: of texts of unequal length the difference of means was the sink's direction."""
    texts = ["it was good", "a fine plot"], ["the film is bad and dull and slow but we saw it", "a dull bad slow plot"]
    reading = {"layer": LAYER, "position": "mean", "prepend_bos": True}
    ((sink, *_),) = by_hand(["good"], left_out=())
    cosine = {}
    for keep in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = ot.CAA.fit(ot.collect(model, *texts, **reading, keep_sinks=keep)).barrier.weight
        cosine[keep] = float(torch.nn.functional.cosine_similarity(weight, sink, dim=0))
    assert abs(cosine[True]) > 0.99 and abs(cosine[False]) < 0.5


def test_a_server_leaves_out_what_this_machine_does(tmp_path):
    """The norms come back with the means, and the rule acts where the activations are."""
    with_sinks().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    script = """
        import warnings
        import odesteer_tl as ot

        model, sides = load(sys.argv[2]), (sys.argv[3].split("|"), sys.argv[4].split("|"))
        found, said = {}, []
        for position in ("mean", "all", 0):
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                acts = ot.collect(model, *sides, 1, position=position, prepend_bos=True, remote=sys.argv[1])
            found[str(position)] = [acts.desired.tolist(), acts.undesired.tolist()]
            said += [str(each.message) for each in heard if "attention sink" in str(each.message)]
        report(found=found, said=said)
    """
    got = client(script, installed_wheel(), server().url, tmp_path, "|".join(DESIRED), "|".join(UNDESIRED))
    pick = {"mean": lambda a: a.mean(0, keepdim=True), "all": lambda a: a}
    for position, sides in got["found"].items():
        for side, texts in zip(sides, (DESIRED, UNDESIRED), strict=True):
            rows = [a[:1] for a in by_hand(texts, ())] if position == "0" else map(pick[position], by_hand(texts))
            torch.testing.assert_close(torch.tensor(side), torch.cat(list(rows)), rtol=1e-4, atol=1e-2)
    assert [text.count("they are left out") for text in got["said"]] == [1, 1, 0]


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("position", ["mean", "all"])
def test_where_there_is_no_sink_nothing_changes(kind, position):
    plain = LOADERS[kind](hugging_face("llama"), tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acts = ot.collect(plain, DESIRED, UNDESIRED, LAYER, position=position, prepend_bos=True)
        kept = ot.collect(plain, DESIRED, UNDESIRED, LAYER, position=position, prepend_bos=True, keep_sinks=True)
    assert torch.equal(acts.desired, kept.desired) and torch.equal(acts.undesired, kept.undesired)


@pytest.mark.parametrize(
    ("norms", "sinks"),
    [
        ([22085, 194, 180, 210], [0]),  # as in SmolLM2
        ([194, 180, 22085, 210, 9000, 200, 190], [2, 4]),  # the gap is below the second
        ([9.2, 1.3, 4.7, 1.0, 1.1, 0.9, 1.0], [0, 2]),  # 4.7 stands with the loud, not with the quiet
        ([5.1, 4.0, 3.1, 2.4, 1.8, 1.3, 1, 1, 1, 0.9, 0.8, 0.7], []),  # loud, but nothing parts it from the others
        ([4.9, 1.0, 1.0, 1.0], []),
        ([3.0, 1.0, 1.0, 1.0, 1.0], []),
        ([22085, 194], [0]),
        ([22085], []),  # a text of one token has nothing to be held against
        ([float("inf"), 1.0, 1.0, 30.0], [3]),  # what is not finite is for others to refuse
        ([0.0, 0.0, 0.0, 1.0], []),
    ],
)
def test_the_rule(norms, sinks):
    row = torch.tensor([norms], dtype=torch.float32)
    real = torch.ones_like(row, dtype=torch.bool)
    assert sinks_among(row, real)[0].nonzero().flatten().tolist() == sinks
    wide = torch.cat([torch.full((1, 3), 1e9), row, torch.full((1, 2), float("nan"))], 1)  # pads tell nothing
    mask = torch.zeros_like(wide, dtype=torch.bool)
    mask[:, 3:-2] = True
    assert sinks_among(wide, mask)[0].nonzero().flatten().tolist() == [3 + n for n in sinks]
    assert sinks_among(1000 * row, real)[0].nonzero().flatten().tolist() == sinks  # whatever the unit


def test_a_text_with_nothing_else_is_read_as_it_is():
    read = torch.tensor([[True, True, False], [True, False, False]])
    sinks = torch.tensor([[True, False, False], [True, False, False]])
    assert kept_of(read, sinks).tolist() == [[False, True, False], [True, False, False]]
