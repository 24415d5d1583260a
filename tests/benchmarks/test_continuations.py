"""What a row costs, in KL on the model's own continuations, against the plain Hugging Face model under torch hooks."""

import pytest
import torch
from models import load

import odesteer_tl as ot
from odesteer_tl.benchmarks.applied import Applied
from odesteer_tl.benchmarks.continuations import Continuations
from odesteer_tl.evaluation.entries import Prompted
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

PROMPTS = ["the film", "a plot is good and", "it"]


def kl(p, q):
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.fixture(scope="module")
def own():
    return Continuations(load("bridge", "llama"), PROMPTS, oracle.LAYER, 4, False)


def rows_of(own):
    texts = own.texts.texts
    rows = [tokens[mask].tolist() for tokens, mask in zip(texts.tokens, texts.mask, strict=True)]
    return list(zip(rows, texts.prompt_lengths.tolist(), strict=True))


def by_hand(own, methods, T):
    found = []
    for number, (row, n) in enumerate(rows_of(own)):
        where, at = oracle.places(methods[number % len(methods)], T), range(n - 1, len(row))
        p, q = oracle.logits("llama", row, (), ()), oracle.logits("llama", row, where, at)
        found.append(kl(p, q)[n - 1 :])
    return float(torch.cat(found).mean())


def test_the_cost_of_a_strength_and_of_methods_that_take_turns_is_that_of_torch_hooks(own):
    first, second = (parity_rows()[name]("llama") for name in ("ODESteer", "CAA"))
    for methods in ((first,), (first, second)):
        cost = own.cost(Applied(methods, ot.Strength(2.0)))
        assert cost == pytest.approx(by_hand(own, methods, 2.0), rel=1e-4) and cost > 1e-3
    assert own.at_T(first, 2.0, "decoding").kl == pytest.approx(by_hand(own, (first,), 2.0), rel=1e-4)
    (level,) = own.levels(first, (0.05,), "decoding")
    assert level.reached
    assert own.cost(Applied((first,), level.strength)) == pytest.approx(level.kl, rel=1e-4)
    assert own.cost(Applied()) == 0.0


def test_the_cost_of_a_prefix_is_that_of_the_same_words_after_it(own):
    prefixes = ("a good film and", "the")
    tokenizer, costs = own.model.tokenizer, {}
    for prefix in prefixes:
        found = []
        for (row, n), prompt in zip(rows_of(own), PROMPTS, strict=True):
            start = tokenizer(f"{prefix} {prompt}", add_special_tokens=False)["input_ids"]
            p = oracle.logits("llama", row, (), ())[n - 1 :]
            q = oracle.logits("llama", start + row[n:], (), ())[len(start) - 1 :]
            found.append(kl(p, q))
        costs[prefix] = float(torch.cat(found).mean())
        assert own.cost(Applied(prefix=prefix)) == pytest.approx(costs[prefix], rel=1e-4)
    budget = 1.01 * max(costs.values())
    (level,) = own.levels(Prompted(prefixes), (budget,), "decoding")
    assert level.prefix == max(costs, key=lambda one: costs[one]) and level.reached
