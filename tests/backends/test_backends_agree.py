"""The parity law: whichever way a model generates, each step's logits are those of the oracle."""

import pytest
from models import EVERY, FAMILIES, load, width
from oracle import EFFECT, PROMPTS, STEPS, TOLERANCE, Stub, T, deviations, generate, steered_positions

import odesteer_tl as ot


@pytest.fixture(scope="module", params=[(kind, family) for kind in EVERY for family in FAMILIES], ids="-".join)
def loaded(request):
    kind, family = request.param
    return kind, family, load(kind, family)


RULES = ["decoding", "generated", "prompt", "all"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("prompts", PROMPTS)
def test_steered_logits_are_the_oracles(loaded, prompts, rule):
    """With a cache and without in turn, so that every two of library, model, cache, prompts and rule meet."""
    kind, family, model = loaded
    turns = EVERY.index(kind), FAMILIES.index(family), list(PROMPTS).index(prompts), RULES.index(rule)
    cache = sum(turns) % 2 == 0
    rows, method = PROMPTS[prompts], Stub(width(model))
    with ot.steering(model, method, T, positions=rule) as report:
        new, found = generate(model, kind, rows, cache)
    for error, effect in deviations(family, rows, new, found, rule, method, [T] * len(rows)):
        assert error <= TOLERANCE
        assert effect >= EFFECT
    counts = [len(steered_positions(rule, len(row), len(row) + STEPS - 1)) for row in rows]
    assert report.tokens_steered == {method.origin.layer: sum(counts)}
