"""Fingerprints: what changes a callable changes its fingerprint, what only uses it does not, and the rest is named."""

import collections
import functools
import re
import threading
import types
from dataclasses import dataclass, field
from typing import Any

import models
import numpy as np
import pytest
import torch

import odesteer_tl as ot
from odesteer_tl.evaluation.sweeps.fingerprints import fingerprint

WORDS = ["good"]


def closing(weight):
    return lambda texts: weight


def with_default(weight):
    def judge(texts, scale=weight, *, shift=0):
        return scale

    return judge


class Linear:
    def __init__(self, weight):
        self.weight = weight

    @functools.cached_property
    def doubled(self):
        return self.weight + self.weight

    def judge(self, texts):
        return self.doubled

    __call__ = judge


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight

    def judge(self, texts):
        return self.weight


@dataclass(frozen=True)
class Frozen:
    weight: object
    nested: dict = field(default_factory=dict)

    def judge(self, texts):
        return self.weight


def of_module(weight):
    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.fill_(float(torch.as_tensor(weight).sum()))
        module.bias.zero_()
    return module


MAKERS = {
    "closure": closing,
    "default": with_default,
    "object": Linear,
    "method": lambda weight: Linear(weight).judge,
    "slots": lambda weight: Slotted(weight).judge,
    "dataclass": lambda weight: Frozen(weight).judge,
    "partial": lambda weight: functools.partial(with_default(0), scale=weight),
    "nested": lambda weight: closing({"a": [Linear((Frozen(weight),))]}),
    "cached": lambda weight: functools.cache(closing(weight)),
    "deque": lambda weight: closing(collections.deque([weight])),
    "namespace": lambda weight: closing(types.SimpleNamespace(inner=weight)),
}
VALUES = {
    "float": (0.5, 0.25), "text": ("a", "b"), "tensor": (torch.zeros(900), torch.eye(30).flatten()),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.ones(2)), "array": (np.zeros(3), np.arange(3.0)),
    "object array": (np.array(["a", None]), np.array(["b", None])), "set": ({"a", "b"}, {"a", "c"}),
    "function": (closing(1), closing(2)), "pattern": (re.compile("a" * 300), re.compile("a" * 299 + "b")),
    "module": (of_module(1), of_module(2)),
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("maker", MAKERS)
def test_another_value_anywhere_inside_is_another_fingerprint_and_the_same_is_the_same(maker, value):
    one, other = (fingerprint(MAKERS[maker](each)) for each in VALUES[value])
    again = fingerprint(MAKERS[maker](VALUES[value][0]))
    assert one[0] != other[0] and one[0] == again[0] and not one[1]


def test_globals_that_are_read_count_and_what_use_leaves_behind_does_not(monkeypatch):
    def judge(texts):
        return [word in text for text in texts for word in WORDS]

    before, held = fingerprint(judge)[0], Linear(torch.ones(2))
    unused = fingerprint(held.judge)[0]
    held.judge([])
    assert "doubled" in vars(held) and fingerprint(held.judge)[0] == unused
    monkeypatch.setitem(globals(), "WORDS", ["great"])
    after = fingerprint(judge)[0]
    assert {name for name in after if after[name] != before[name]} == {"global WORDS"}
    assert fingerprint(ot.CAA) != fingerprint(ot.ODESteer) and fingerprint(ot.CAA) == fingerprint(ot.CAA)


def test_a_value_that_holds_itself_has_a_fingerprint():
    def knot(value):
        ring: list = [value]
        ring.append(ring)
        return closing(ring)

    assert fingerprint(knot(1)) == fingerprint(knot(1)) != fingerprint(knot(2))


def test_a_model_and_a_tokenizer_are_the_same_after_use_and_another_after_training():
    model: Any = models.hugging_face("llama")
    tokenizer = models.tokenizer()
    before = [fingerprint(closing(one)) for one in (model, tokenizer)]
    read = tokenizer(["the film", "a plot was great"], padding=True, return_tensors="pt")
    model.generate(read["input_ids"], max_new_tokens=2, pad_token_id=0)
    model.eval()
    assert [fingerprint(closing(one)) for one in (model, tokenizer)] == before and not before[0][1] + before[1][1]
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1.0
    assert fingerprint(closing(model)) != before[0]


def test_what_cannot_be_read_is_named_and_does_not_change_the_rest():
    class Client:
        def __init__(self, name):
            self.name, self.lock = name, threading.Lock()

        def judge(self, texts):
            return self.lock

    found, unread = fingerprint(Client("a").judge)
    assert len(unread) == 1 and "self.lock" in unread[0] and fingerprint(Client("a").judge)[0] == found
    assert fingerprint(Client("b").judge)[0] != found
    assert "closure weight" in fingerprint(closing(iter([1]).__next__ for _ in ()))[1][0]
