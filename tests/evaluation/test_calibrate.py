"""The calibrated strength, judged by the plain Hugging Face model under torch hooks."""

import warnings
from functools import cache

import pytest
import torch
from instances import without_shape_checks
from models import EVERY, load

import odesteer_tl as ot
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

PROMPTS = ["the film", "a plot is good and", "it"]
ROWS = {name: cache(fit) for name, fit in parity_rows().items()}
KL = 0.05


def divergences(texts, method, T, rule="decoding"):
    """KL at every steered token, computed row by row without this package's passes."""
    found = []
    for tokens, mask, prompt in zip(texts.tokens, texts.mask, texts.prompt_lengths.tolist(), strict=True):
        row = tokens[mask].tolist()
        where = {"decoding": range(prompt - 1, len(row)), "all": range(len(row)), "prompt": range(prompt)}[rule]
        p = oracle.logits("llama", row, (), ())[list(where)].double().softmax(-1)
        q = oracle.logits("llama", row, oracle.places(method, T), where)[list(where)].double().softmax(-1)
        found.append((p * (p / q).log()).sum(-1))
    return torch.cat(found)


@pytest.fixture(scope="module", params=EVERY)
def model(request):
    return load(request.param, "llama")


@pytest.mark.parametrize("rule", [0, 1, 2], ids=["decoding", "prompt", "all"])
@pytest.mark.parametrize("name", [0, 1, 2], ids=["ODESteer", "ITI, heads", "A-LQR"])
def test_divergences_are_those_of_torch_hooks(name, rule):
    """The libraries in turn: every two of library, method and rule meet."""
    model = load(EVERY[(name + rule) % len(EVERY)], "llama")
    method = ROWS[("ODESteer", "ITI, heads", "A-LQR")[name]]("llama")
    rule = ("decoding", "prompt", "all")[rule]
    texts = ot.generate(model, PROMPTS, max_new_tokens=5)
    steered = SteeredTexts.of(model, texts, rule)
    T = 0.5 * method.usual_T
    found = steered.divergences(lambda value: [(method, ot.Strength(value))], [T, 2 * T], batch_size=4)
    for own, strength in zip(found, (T, 2 * T), strict=True):
        torch.testing.assert_close(own, divergences(texts, method, strength, rule), rtol=1e-4, atol=2e-6)
    assert found.mean() > 1e-3


@pytest.mark.parametrize("name", ROWS)
def test_every_method_spends_its_budget(name):
    """Of the model that has nothing beside its weights, here; what a strength does on others is for parity to say."""
    model, method = load("huggingface", "llama"), ROWS[name]("llama")
    try:
        found = ot.calibrate(model, method, PROMPTS, KL, relative=False, max_new_tokens=5)
    except ValueError as error:
        assert "nats of KL" in str(error)
        weakest = method.usual_T * 1e-3  # at which only loops still act
        ends = [divergences_of(model, method, T) for T in (weakest, bound_of(method))]
        assert max(ends) < KL or min(ends) > KL, (str(error), ends)
        return
    spent = divergences_of(model, method, found.strength.T)
    assert abs(spent / KL - 1) <= 0.051 and abs(spent / found.spent - 1) <= 1e-3
    assert found.tokens == 3 * 6


def divergences_of(model, method, T):
    return float(divergences(ot.generate(model, PROMPTS, max_new_tokens=5), method, T).mean())


def bound_of(method):
    bounds = method.view.T.bounds if hasattr(method, "view") else None
    return method.usual_T * 100 if bounds is None else min(bounds[1], 100.0)


def test_neither_batches_nor_padding_move_the_answer():
    model, method = load("bridge", "llama"), ROWS["ODESteer"]("llama")
    own = {"kl": KL, "max_new_tokens": 5}
    alone = ot.calibrate(model, method, PROMPTS[1:2], **own)
    assert alone.strength.relative_T is not None
    padded = ot.calibrate(model, method, [PROMPTS[1], PROMPTS[1]], **own)
    together = [ot.calibrate(model, method, PROMPTS, batch_size=size, **own) for size in (1, 7, 50)]
    assert padded.strength.relative_T == pytest.approx(alone.strength.relative_T, rel=1e-3)
    for other in together[1:]:
        assert other.strength.relative_T == pytest.approx(together[0].strength.relative_T, rel=1e-3)
        assert [point.value for point in other.curve] == pytest.approx([point.value for point in together[0].curve])


def test_the_curve_says_what_was_moved():
    model, method = load("huggingface", "llama"), ROWS["ODESteer"]("llama")
    found = ot.calibrate(model, method, PROMPTS, KL, quantile=0.9, max_new_tokens=5)
    values = [point.value for point in found.curve]
    assert values == sorted(values) and found.strength.relative_T in values
    for point in found.curve:
        assert point.displacement <= point.value * 1.001 and point.h_end > point.h_start
        assert point.kl_mean <= point.kl * 1.5 <= point.kl_p95 * 1.6
    texts = ot.generate(model, PROMPTS, max_new_tokens=5)
    relative = method.steer  # T of every token is a part of its own norm, so that the direct sum steers by that
    places = [(method.layer, "resid_post", lambda a, query: relative(a, relative_T=found.strength.relative_T))]
    costs = []
    for tokens, mask, prompt in zip(texts.tokens, texts.mask, texts.prompt_lengths.tolist(), strict=True):
        row = tokens[mask].tolist()
        where = list(range(prompt - 1, len(row)))
        p = oracle.logits("llama", row, (), ())[where].double().softmax(-1)
        q = oracle.logits("llama", row, places, where)[where].double().softmax(-1)
        costs.append((p * (p / q).log()).sum(-1))
    assert float(torch.cat(costs).quantile(0.9)) == pytest.approx(KL, rel=0.051)
    assert f"relative_T = {found.strength.relative_T:.4g} spends" in str(found) and "90 % quantile" in str(found)


def test_the_strength_is_taken_wherever_T_is(tmp_path):
    model, method = load("huggingface", "llama"), ROWS["CAA"]("llama")
    found = ot.calibrate(model, method, PROMPTS, KL, max_new_tokens=5)
    assert found.strength.T is not None
    steered = ot.generate(model, PROMPTS, method, found.strength)
    assert torch.equal(steered.tokens, ot.generate(model, PROMPTS, method, found.strength.T).tokens)
    found.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


def test_no_budget_is_no_steering():
    model, method = load("huggingface", "llama"), ROWS["ODESteer"]("llama")
    found = ot.calibrate(model, method, PROMPTS, 0)
    assert found.strength.relative_T == 0 and found.spent == 0 and found.reached
    with pytest.raises(ValueError, match="no curve to plot"):
        found.plot("curve.png")


def test_strengths_that_are_tried_warn_of_nothing():
    model, method = load("huggingface", "llama", dtype=torch.bfloat16), ROWS["ODESteer"]("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ot.calibrate(model, method, PROMPTS, KL, max_new_tokens=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kl": -0.1}, "kl is a budget in nats, 0 or more"),
        ({"kl": float("nan")}, "kl is a budget"),
        ({"quantile": 1.0}, "quantile lies between 0 and 1"),
        ({"positions": slice(50, 60)}, "names no token of these texts"),
        ({"kl": "0.1"}, "kl is a budget in nats"),
        ({"quantile": "x"}, "quantile is a finite number"),
        ({"kl": 0, "method": ROWS["A-LQR"]("llama")}, "A?LQR is not off at 0: it spends"),
        ({"layer": 9}, "Layer 9 does not exist"),
        ({"method": ot.CAA}, "CAA is a class, not a fitted method"),
        ({"method": [(ROWS["CAA"]("llama"), 0.0)]}, "All strengths of the list are 0"),
        ({"method": [(ROWS["CAA"]("llama"), torch.ones(3))]}, "give one number for each"),
        ({"method": [ROWS["CAA"]("llama")]}, "A list of methods holds pairs"),
        ({"method": ROWS["Ablation"]("llama"), "relative": True}, "and no relative_T; got T=None, relative_T=0.0"),
        ({"remote": "http://127.0.0.1:1"}, "remote=True needs an nnsight model"),
        ({"kl": 1e6}, r"CAA does not spend 1e\+06 nats of KL: .* at most, for T from .* Give a smaller budget"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_stays_as_it_was(given, said):
    model, method = load("bridge", "llama"), ROWS["CAA"]("llama")
    tokens = torch.tensor([[1, 5, 6, 7]])
    before = model(tokens)
    with pytest.raises(ValueError, match=said):
        ot.calibrate(model, **{"method": method, "prompts": PROMPTS, "max_new_tokens": 3, **given})
    assert torch.equal(model(tokens), before)


def test_a_mask_may_name_no_token_of_a_prompt(model):
    """The strength is that of the other prompts alone."""
    method, mask = ROWS["CAA"]("llama"), torch.ones(2, 40, dtype=torch.bool)
    mask[1] = False
    with without_shape_checks():  # the mask is wider than the texts
        both = ot.calibrate(model, method, PROMPTS[:2], KL, positions=mask, max_new_tokens=4)
        alone = ot.calibrate(model, method, PROMPTS[:1], KL, positions=mask[:1], max_new_tokens=4)
    assert both.strength.T == pytest.approx(alone.strength.T, rel=1e-3) and both.tokens == alone.tokens
