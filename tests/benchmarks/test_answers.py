"""Answers' log-probabilities, steered and not, against the plain Hugging Face model under torch hooks."""

import pytest
import torch
from models import EVERY, load

import odesteer_tl as ot
from odesteer_tl.backends.shared_prefix import shared_prefix
from odesteer_tl.benchmarks.answers import AnswerScorer, Question
from odesteer_tl.benchmarks.applied import UNCHANGED, Applied
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

QUESTIONS = [
    Question("the film", (" is good", " is a plot and", " it")),
    Question("the film is a", (" plot", " good and it")),
    Question("it", (" is", " is good and it is a film")),
]


def by_hand(model, question, method=None, T=0.0, rule="decoding"):
    """Row by row, with the oracle's hooks and no cache."""
    tokenizer, found = model.tokenizer, []
    prompt = tokenizer(question.prompt, add_special_tokens=False)["input_ids"]
    for answer in question.answers:
        row = tokenizer(question.prompt + answer, add_special_tokens=False)["input_ids"]
        first = {"decoding": len(prompt) - 1, "all": 0}[rule]
        where = () if method is None else oracle.places(method, T)
        log_p = oracle.logits("llama", row, where, range(first, len(row))).double().log_softmax(-1)
        found.append(sum(float(log_p[at - 1, row[at]]) for at in range(len(prompt), len(row))))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", ["ODESteer", "ITI, heads", "HPR", "TruthFlow", "A-LQR"])
@pytest.mark.parametrize("kind", EVERY)
def test_sums_are_those_of_torch_hooks(kind, name):
    model, method = load(kind, "llama"), parity_rows()[name]("llama")
    T = 0.5 * method.usual_T
    scorer = AnswerScorer(model, prepend_bos=False, batch_size=2)
    assert (scorer._shared is None) == (kind in ("nnsight", "hooked"))
    plain = scorer.scores(QUESTIONS)
    rules = ("decoding",) if name == "TruthFlow" else ("decoding", "all")
    for rule in rules:
        steered = scorer.scores(QUESTIONS, Applied((method,), ot.Strength(T), positions=rule))
        for question, own, other in zip(QUESTIONS, plain, steered, strict=True):
            tokens = model.tokenizer if hasattr(model, "tokenizer") else None
            assert tokens is not None and own.tokens.tolist() == [len(a.split()) for a in question.answers]
            torch.testing.assert_close(own.sums, by_hand(model, question), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(other.sums, by_hand(model, question, method, T, rule), rtol=1e-4, atol=1e-4)
            assert (own.sums - other.sums).abs().max() > 1e-3


def test_methods_take_turns_over_the_questions_and_a_prefix_stands_before_the_prompt():
    model = load("bridge", "llama")
    first, second = (parity_rows()[name]("llama") for name in ("ODESteer", "CAA"))
    scorer = AnswerScorer(model, prepend_bos=False)
    turns = scorer.scores(QUESTIONS, Applied((first, second), ot.Strength(3.0)))
    for number, question in enumerate(QUESTIONS):
        alone = by_hand(model, question, (first, second)[number % 2], 3.0)
        torch.testing.assert_close(turns[number].sums, alone, rtol=1e-4, atol=1e-4)
    prefixed = scorer.scores(QUESTIONS, Applied(prefix="a plot"))
    for question, own in zip(QUESTIONS, prefixed, strict=True):
        longer = Question(f"a plot {question.prompt}", question.answers)
        torch.testing.assert_close(own.sums, by_hand(model, longer), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bridge", "huggingface"])
def test_an_answer_whose_last_token_alone_is_named_and_values_per_answer(kind):
    model, method = load(kind, "llama"), parity_rows()["CAA"]("llama")
    short, three = Question("the film", (" is", " was")), QUESTIONS[0]
    mask = torch.tensor([[True] * 4, [False] * 4, [False, True, True, True]])
    for question, T, positions in (
        (short, 3.0, slice(2, 3)), (short, 3.0, "generated"), (three, torch.tensor([1.0, 2.0, 3.0]), "all"),
        (three, 3.0, mask),
    ):  # fmt: skip
        applied = Applied((method,), ot.Strength(T), positions=positions)
        whole, shared = (AnswerScorer(model, False, share=share).scores([question], applied) for share in (False, True))
        torch.testing.assert_close(shared[0].sums, whole[0].sums, rtol=1e-4, atol=1e-4)


def test_what_is_kept_is_of_the_model_as_it_is():
    model = load("huggingface", "llama")
    scorer = AnswerScorer(model, prepend_bos=False)
    with ot.steering(model, parity_rows()["CAA"]("llama"), T=3.0, positions="all"):
        steered = scorer.scores(QUESTIONS[:1])
    for question, own in zip(QUESTIONS[:1], scorer.scores(QUESTIONS[:1]), strict=True):
        torch.testing.assert_close(own.sums, by_hand(model, question), rtol=1e-4, atol=1e-4)
        assert (own.sums - steered[0].sums).abs().max() > 1e-3


def test_a_hook_of_ones_own_that_counts_columns_is_noticed():
    model = load("huggingface", "llama")
    long = Question("the film is a film and it is a film and it is a film", (" is good", " was"))

    def push(module, args, out):
        return torch.cat([out[:, :13], out[:, 13:] + 1.0], 1)

    handle = model.model.layers[0].register_forward_hook(push)
    try:
        assert shared_prefix(model) is not None  # a look at twelve tokens does not show it
        one, other = (AnswerScorer(model, False, share=share).scores([long])[0].sums for share in (True, False))
    finally:
        handle.remove()
    assert torch.equal(one, other) and (one - by_hand(model, long)).abs().max() > 1e-2


def test_a_model_whose_cache_gives_other_logits_is_not_served():
    model = load("huggingface", "llama")
    assert shared_prefix(model) is not None
    handle = model.register_forward_hook(
        lambda module, args, kwargs, out: setattr(out, "logits", out.logits * 2) if kwargs.get("use_cache") else None,
        with_kwargs=True,
    )
    try:
        assert shared_prefix(model) is None
    finally:
        handle.remove()


def test_questions_without_answers_and_answers_without_tokens_are_refused():
    scorer = AnswerScorer(load("huggingface", "llama"), prepend_bos=False)
    with pytest.raises(ValueError, match="needs answers"):
        scorer.scores([Question("the film", ())])
    with pytest.raises(ValueError, match="has no tokens of its own"):
        scorer.scores([Question("the film", (" is", ""))], UNCHANGED)
