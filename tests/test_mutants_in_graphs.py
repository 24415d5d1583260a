"""The wrong rules of test_mutants.py, made inside `ot.intervene`: the oracle sees them, far above the tolerance."""

import nnsight
import pytest
import torch
from models import FAMILIES, load, width
from oracle import PROMPTS, STEPS, TOLERANCE, Stub, T, deviations, padded

import odesteer_tl as ot
from odesteer_tl.backends.nnsight import intervening, sites

ROWS = PROMPTS["batch"]
STRENGTHS = torch.tensor([3.0, 1.0, 2.0])


def none(patch):
    """The package as it is."""


def shifted(patch, by):
    rule = intervening.chosen_by
    patch.setattr(intervening, "chosen_by", lambda positions, index, lengths: rule(positions, index + by, lengths))


def one_early(patch):
    shifted(patch, 1)


def one_late(patch):
    shifted(patch, -1)


def only_the_last_column(patch):
    rule = intervening.chosen_by

    def last(positions, index, lengths):
        chosen = rule(positions, index, lengths)
        chosen[:, :-1] = False
        return chosen

    patch.setattr(intervening, "chosen_by", last)


def pads_counted(patch):
    tell = intervening.real_tokens
    patch.setattr(intervening, "real_tokens", lambda *what: (None, tell(*what)[1]))


def every_pass_a_prompt(patch):
    """As a hook that forgets: of each pass the last token."""
    choose = intervening._chosen
    patch.setattr(intervening, "_chosen", lambda worker, memory, *what: choose(worker, {}, *what))


def rows_swapped(patch):
    state = intervening.State
    patch.setattr(intervening, "State", lambda rows: state(rows.flip(0)))


def tuple_ignored(patch):
    """The new value goes nowhere, as an assignment to `output[0]` of a block that returns no tuple."""
    patch.setattr(sites, "output_with", lambda output, value: output)


def no_op(patch):
    patch.setattr(Stub, "push", lambda self, a: torch.zeros_like(a))


CASES = [
    (one_early, "decoding", True),
    (one_early, "decoding", False),
    (one_early, "generated", True),
    (one_late, "decoding", False),
    (one_late, "prompt", True),
    (only_the_last_column, "decoding", False),
    (only_the_last_column, "all", True),
    (pads_counted, slice(0, 1), True),
    (pads_counted, slice(0, 1), False),
    (every_pass_a_prompt, "decoding", False),
    (every_pass_a_prompt, "generated", False),
    (rows_swapped, "decoding", True),
    (rows_swapped, "decoding", False),
    (tuple_ignored, "decoding", True),
    (no_op, "decoding", True),
]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request):
    return request.param, load("nnsight", request.param)


def worst(monkeypatch, loaded, mutant, rule, cache):
    """The largest distance from the oracle over all rows and steps, with `mutant` in place of the package."""
    family, model = loaded
    method, (tokens, mask) = Stub(width(model)), padded(ROWS, 0)
    strengths = STRENGTHS if mutant is rows_swapped else torch.tensor([T] * len(ROWS))
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
    with monkeypatch.context() as patch:
        mutant(patch)
        with model.generate({"input_ids": tokens, "attention_mask": mask}, use_cache=cache, **options) as tracer:
            found = nnsight.save([])
            for _ in tracer.iter[:STEPS]:
                ot.intervene(model, method, strengths, positions=rule)
                found.append(model.lm_head.output[:, -1])
            new = nnsight.save(tracer.result)
    new, found = new[:, -STEPS:], torch.stack(found, dim=1)
    return max(error for error, _ in deviations(family, ROWS, new, found, rule, method, strengths.tolist()))


@pytest.mark.parametrize("mutant, rule, cache", CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_oracle_tells_a_wrong_rule(monkeypatch, loaded, mutant, rule, cache):
    assert worst(monkeypatch, loaded, mutant, rule, cache) >= 100 * TOLERANCE


@pytest.mark.parametrize("rule", ["decoding", "generated", "prompt", "all", slice(0, 1)], ids=str)
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
def test_the_oracle_passes_the_right_one(monkeypatch, loaded, rule, cache):
    assert worst(monkeypatch, loaded, none, rule, cache) <= TOLERANCE
