"""What both harnesses are tested on: the random models of `models`, and methods and sums of `oracle`."""

import json
from functools import cache

import torch
from models import hugging_face, load
from oracle import LAYER, Stub, T, logits, steered_positions

import odesteer_tl as ot
from odesteer_tl.parity import oracle

TEMPLATE = (
    "{% for message in messages %}<s> {{ 'it' if message['role'] == 'user' else 'we' }} {{ message['content'] }} "
    "{% endfor %}{% if add_generation_prompt %}the{% endif %}"
)


@cache
def model_of(kind, family):
    return load(kind, family)


@cache
def fitted():
    """A method for llama, at the layer of the stub, that can be saved."""
    return ot.CAA.fit(oracle.activations("llama"))


def expected(family, context, answer, rule="decoding", method=None, strength=T):
    """log p of an answer after a context, token ids, by a torch hook on the plain model."""
    row = (context + answer)[:-1]
    where = [] if method is None else steered_positions(rule, len(context), len(row))
    after = logits(hugging_face(family), row, where, method or Stub(32), strength)[len(context) - 1 :]
    return float(after.double().log_softmax(-1)[range(len(answer)), answer].sum())


def greedy(family, prompt, steps, method=None, stop=(), strength=T):
    """Greedy tokens after a prompt, by the same hook, up to a token of `stop` or the end of the text."""
    row = list(prompt)
    for _ in range(steps):
        where = [] if method is None else steered_positions("decoding", len(prompt), len(row))
        row.append(int(logits(hugging_face(family), row, where, method or Stub(32), strength)[-1].argmax()))
        if row[-1] in (2, *stop):
            break
    return row[len(prompt) :]


def lines(path, docs):
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    return path


__all__ = ["LAYER", "TEMPLATE", "Stub", "T", "expected", "fitted", "greedy", "lines", "model_of", "torch"]
