"""Log-likelihoods of continuations: those of a torch hook on the plain model, in any batch, at every rule."""

from contextlib import nullcontext

import pytest
import torch
from models import EVERY, hugging_face, load
from oracle import LAYER, TOLERANCE, Asking, Stub, T, logits, steered_positions

from odesteer_tl.backends import likelihoods as module
from odesteer_tl.backends.likelihoods import likelihoods
from odesteer_tl.backends.tokenize import left_padded
from odesteer_tl.interventions.report import Report

CONTEXTS = [[1, 5, 6, 7, 9], [1], [1, 8, 4], [1, 12]]
ANSWERS = [[10, 11], [5, 6, 7], [9], [4, 4, 4, 20, 21, 7]]
TEXTS = left_padded([context + answer for context, answer in zip(CONTEXTS, ANSWERS, strict=True)], 0)
LENGTHS = torch.tensor([len(context) for context in CONTEXTS])
RULES = ["decoding", "generated", "prompt", "all", slice(1, 3), slice(0, 8, 2)]


def expected(family, rule, method, contexts=CONTEXTS, answers=ANSWERS):
    """By row: log p and whether it is the largest, of each token of the answer, and the number of steered tokens."""
    found = []
    for context, answer in zip(contexts, answers, strict=True):
        row = (context + answer)[:-1]  # the model need not see the last token
        where = [] if rule is None else steered_positions(rule, len(context), len(row))
        after = logits(hugging_face(family), row, where, method, T)[len(context) - 1 :]
        p = after.double().log_softmax(-1)[range(len(answer)), answer]
        found.append((p, [int(after[i].argmax()) == token for i, token in enumerate(answer)], len(list(where))))
    return found


@pytest.fixture(scope="module", params=[(kind, family) for kind in EVERY for family in ("llama", "gpt2")], ids="-".join)
def loaded(request):
    return request.param[1], load(*request.param)


def check(found, wanted):
    for row, (p, greedy, steered) in enumerate(wanted):
        assert (found.tokens[row] - p).abs().max() <= TOLERANCE
        assert found.greedy[row].tolist() == greedy
        assert int(found.steered[row]) == steered


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_they_are_those_of_a_hook_at_every_rule(loaded, rule):
    family, model = loaded
    method = Stub(32)
    check(likelihoods(model, TEXTS, LENGTHS, method, T, positions=rule), expected(family, rule, method))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing(loaded, batch_size):
    model = loaded[1]
    method = Asking(32)  # it asks for the last token of each context
    found = likelihoods(model, TEXTS, LENGTHS, method, T, batch_size=batch_size)
    whole = likelihoods(model, TEXTS, LENGTHS, method, T)
    for one, other in zip(found.tokens, whole.tokens, strict=True):
        assert (one - other).abs().max() <= TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 16])
def test_texts_that_differ_in_their_last_token_alone_are_one_row(loaded, batch_size, monkeypatch):
    """Unless another part of them is the context, as other tokens are steered then."""
    contexts = [[1, 8, 4], [1, 8, 4], [1, 8, 4], [1, 8], [1, 8, 4], [1, 8, 4]]
    answers = [[9], [5, 6], [12], [4, 9], [5, 7], [9]]
    family, model = loaded
    passes, measured = [], module._measured
    monkeypatch.setattr(module, "_measured", lambda m, batch, *what: passes.append(batch) or measured(m, batch, *what))
    texts = left_padded([context + answer for context, answer in zip(contexts, answers, strict=True)], 0)
    lengths = torch.tensor([len(context) for context in contexts])
    for method, rule in ((Stub(32), "decoding"), (Stub(32), "prompt"), (None, None)):
        found = likelihoods(model, texts, lengths, method, method and T, positions=rule or "all", batch_size=batch_size)
        check(found, expected(family, rule, method or Stub(32), contexts, answers))
        assert sum(len(batch.tokens) for batch in passes) == 3
        passes.clear()


def test_without_a_method_they_are_the_models_own(loaded):
    family, model = loaded
    found = likelihoods(model, TEXTS, LENGTHS, batch_size=2)
    check(found, expected(family, None, Stub(32)))
    steered = likelihoods(model, TEXTS, LENGTHS, Stub(32), T)
    assert max(float((a - b).abs().max()) for a, b in zip(found.tokens, steered.tokens, strict=True)) > 0.1


def test_a_text_of_which_nothing_is_steered_says_so(loaded):
    """One token after its context, which the model does not see."""
    model = loaded[1]
    found = likelihoods(model, TEXTS, LENGTHS, Stub(32), T, positions="generated")
    assert found.steered.tolist() == [1, 2, 0, 5]
    plain = likelihoods(model, TEXTS, LENGTHS)
    assert (found.tokens[2] - plain.tokens[2]).abs().max() <= TOLERANCE
    assert likelihoods(model, TEXTS, LENGTHS, Stub(32), T, positions=slice(40, 50)).steered.tolist() == [0] * 4


@pytest.mark.parametrize("lengths", [[5, 0, 3, 2], [7, 1, 3, 2], [5, 1, 4, 2]])
def test_contexts_and_continuations_have_tokens(loaded, lengths):
    with pytest.raises(ValueError, match="at least one"):
        likelihoods(loaded[1], TEXTS, torch.tensor(lengths))


def test_edits_that_do_not_run_are_an_error(loaded, monkeypatch):
    """The counts of the pass are compared with the rule."""
    monkeypatch.setattr(module, "attached", lambda *what: nullcontext(Report({LAYER: 3})))
    with pytest.raises(RuntimeError, match="12 tokens were to be steered"):
        likelihoods(loaded[1], TEXTS, LENGTHS, Stub(32), T)


def test_the_likeliest_tokens_are_those_of_a_hook(loaded):
    family, model = loaded
    found = likelihoods(model, TEXTS, LENGTHS, Stub(32), T, top=3, batch_size=2)
    for row, (context, answer) in enumerate(zip(CONTEXTS, ANSWERS, strict=True)):
        tokens = (context + answer)[:-1]
        where = steered_positions("decoding", len(context), len(tokens))
        after = logits(hugging_face(family), tokens, where, Stub(32), T)[len(context) - 1 :].log_softmax(-1).topk(3)
        values, ids = found.likeliest[row]
        assert (values - after.values).abs().max() <= TOLERANCE and ids.equal(after.indices)
    assert likelihoods(model, TEXTS, LENGTHS).likeliest is None
