"""Wrong rules, each of them made before by someone, written once: in every library, in hooks and in graphs, the oracle
sees them, far above its tolerance.

A rule is wrong in lines that all models share. Each library meets each mutant with one model, the next mutant with the
next, so that every library meets every model.
"""

from functools import cache

import nnsight
import pytest
import torch
from models import BACKENDS, FAMILIES, load, width
from oracle import PROMPTS, STEPS, TOLERANCE, Asking, Stub, T, deviations, generate, padded

import odesteer_tl as ot
from odesteer_tl.backends import edit_runner
from odesteer_tl.portable import apply_edits, token_tracks
from odesteer_tl.portable.nnsight import intervene

ROWS = PROMPTS["batch"]
STRENGTHS = torch.tensor([3.0, 1.0, 2.0])


def none(patch):
    """The package as it is."""


def shifted(patch, by):
    rule = apply_edits.chosen_by
    patch.setattr(apply_edits, "chosen_by", lambda positions, index, *what: rule(positions, index + by, *what))


def one_early(patch):
    shifted(patch, 1)


def one_late(patch):
    shifted(patch, -1)


def only_the_last_column(patch):
    """A hook that steers column -1: right with a cache, another method without."""
    rule = apply_edits.chosen_by

    def last(positions, index, *what):
        chosen = rule(positions, index, *what)
        chosen[:, :-1] = False
        return chosen

    patch.setattr(apply_edits, "chosen_by", last)


def pads_counted(patch):
    """Positions counted from the first column, so that pads are steered in place of tokens."""
    patch.setattr(token_tracks, "mask_of", lambda now, cached=False: torch.ones(now.batch, now.width, dtype=torch.bool))


def every_pass_a_prompt(patch):
    """As a hook that forgets: of each pass the last token."""
    patch.setattr(token_tracks, "carried_on", lambda before, now, given=None: None)


def rows_swapped(patch):
    rows_on = apply_edits.Selection.rows_on
    patch.setattr(apply_edits.Selection, "rows_on", lambda self, device: rows_on(self, device).flip(0))


def one_column_off(patch):
    """What is chosen is right, and the activations are those of the columns before."""
    index = apply_edits.Selection.index

    def before(self, device):
        rows, columns = index(self, device)
        return rows, (columns - 1).clamp_min(0)

    patch.setattr(apply_edits.Selection, "index", before)


def result_dropped(patch):
    """The edit is computed, and goes nowhere."""
    patch.setattr(apply_edits.Selection, "put", lambda self, value, new: value)


def not_put_back(patch):
    """The new value is not given to the model, as with an assignment to `output[0]` of a block that returns no
    tuple."""
    hook = edit_runner.EditRunner.hook

    def dropped(self, site):
        carry_out = hook(self, site)

        def to_nothing(value, hook=None):
            carry_out(value.clone(), hook)

        return to_nothing

    patch.setattr(edit_runner.EditRunner, "hook", dropped)
    patch.setattr(intervene, "put_at", lambda block, name, value: None)


def no_op(patch):
    patch.setattr(Stub, "push", lambda self, a: torch.zeros_like(a))


def asked_too_early(patch):
    """A method that steers by the prompt's last token is given the token before it, or the prompt's only one."""
    ends = token_tracks.TokenTrack.ends

    def earlier(self, lengths):
        return ends(self, (lengths - 1).clamp_min(1))

    patch.setattr(token_tracks.TokenTrack, "ends", earlier)


# mutant, its rule of positions, cache
CASES = [
    (one_early, "decoding", True),
    (one_early, "decoding", False),
    (one_early, "generated", True),
    (one_late, "decoding", True),
    (one_late, "decoding", False),
    (one_late, "prompt", True),
    (only_the_last_column, "decoding", False),
    (only_the_last_column, "all", True),
    (pads_counted, slice(0, 1), True),
    (pads_counted, slice(0, 1), False),
    (every_pass_a_prompt, "decoding", False),
    (rows_swapped, "decoding", True),
    (rows_swapped, "decoding", False),
    (one_column_off, "decoding", True),
    (result_dropped, "decoding", True),
    (not_put_back, "decoding", True),
    (no_op, "decoding", True),
    (asked_too_early, "decoding", True),
]
KINDS = [*BACKENDS, "graph"]  # the last: ot.intervene in a graph of nnsight
RULES = ["decoding", "generated", "prompt", "all", slice(0, 1)]
# what test_backends_agree.py does not run: graphs, and a rule by positions
RIGHT = [(rule, cache) for rule in RULES for cache in (True, False)]
NEW = [("graph", *case) for case in RIGHT] + [(kind, *case) for kind in BACKENDS for case in RIGHT[-2:]]


def with_models(cases):
    """Each case (kind, …) as (kind, family, …), with the families in turn."""
    return [
        (kind, FAMILIES[(KINDS.index(kind) + number) % len(FAMILIES)], *case)
        for number, (kind, *case) in enumerate(cases)
    ]


@cache
def loaded(kind, family):
    return load("nnsight" if kind == "graph" else kind, family)


def steered(kind, model, method, strengths, rule, cache):
    """Tokens and logits as of `oracle.generate`, steered inside a block, or inside a graph."""
    if kind != "graph":
        with ot.steering(model, method, strengths, positions=rule):
            return generate(model, kind, ROWS, cache)
    tokens, mask = padded(ROWS, 0)
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
    with model.generate({"input_ids": tokens, "attention_mask": mask}, use_cache=cache, **options) as tracer:
        found = nnsight.save([])
        for _ in tracer.iter[:STEPS]:
            ot.intervene(model, method, strengths, positions=rule)
            found.append(model.lm_head.output[:, -1])
        new = nnsight.save(tracer.result)
    return new[:, -STEPS:], torch.stack(found, dim=1)


def worst(monkeypatch, kind, family, mutant, rule, cache):
    """The largest distance from the oracle over all rows and steps, with `mutant` in place of the package."""
    model = loaded(kind, family)
    method = (Asking if mutant is asked_too_early else Stub)(width(model))
    strengths = STRENGTHS if mutant is rows_swapped else torch.tensor([T] * len(ROWS))
    with monkeypatch.context() as patch:
        mutant(patch)
        new, found = steered(kind, model, method, strengths, rule, cache)
    return max(error for error, _ in deviations(family, ROWS, new, found, rule, method, strengths.tolist()))


def named(value):
    return getattr(value, "__name__", str(value))


WRONG = with_models([(kind, *case) for kind in KINDS for case in CASES])


@pytest.mark.parametrize("kind, family, mutant, rule, cache", WRONG, ids=named)
def test_the_oracle_tells_a_wrong_rule(monkeypatch, kind, family, mutant, rule, cache):
    assert worst(monkeypatch, kind, family, mutant, rule, cache) >= 100 * TOLERANCE


@pytest.mark.parametrize("kind, family, rule, cache", with_models(NEW), ids=named)
def test_the_oracle_passes_the_right_one(monkeypatch, kind, family, rule, cache):
    assert worst(monkeypatch, kind, family, none, rule, cache) <= TOLERANCE
