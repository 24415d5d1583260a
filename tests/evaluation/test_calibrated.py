"""A method that carries its strength: no T is needed, kept or sent, and other uses of the strength are told of."""

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from models import BACKENDS, EVERY, load

import odesteer_tl as ot
from odesteer_tl.parity.table import parity_rows

PROMPTS = ["the film", "a plot is good and", "it"]
ROWS = {name: cache(fit) for name, fit in parity_rows().items()}
KL = 0.05
OPTIONS = {"max_new_tokens": 5, "stop_at_eos": False}


def carried(method, **own):
    strength = {"T": None, "relative_T": 0.3} | own
    return ot.Calibrated(method, **strength, kl=KL)


@cache
def loaded(kind):
    return load(kind, "llama")


@pytest.fixture
def alone():
    return loaded("huggingface")


def texts(model, method, *strength, **options):
    return ot.generate(model, PROMPTS, method, *strength, **OPTIONS, **options).tokens


SEVERAL = [("ODESteer", "ITI, heads"), ("RepE, layers", "A-LQR")]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", EVERY)
def test_no_T_is_the_strength_and_a_T_takes_its_place(kind, number):
    """Each library with two of the four kinds of methods, and each of these in two libraries."""
    model = loaded(kind)
    method = ROWS[SEVERAL[number][EVERY.index(kind) % 2]]("llama")
    T = 2 * method.usual_T
    own = carried(method, T=T, relative_T=None)
    expected, tokens = texts(model, method, T), torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(texts(model, own), expected) and not torch.equal(texts(model, None), expected)
    assert torch.equal(texts(model, [own]), expected)
    assert torch.equal(texts(model, [(own, 0.5 * T)]), texts(model, method, 0.5 * T))
    assert torch.equal(texts(model, own, 0.0), texts(model, method, 0.0))
    forward = getattr(model, "_module", model)
    for ours, theirs in (((own,), (method, T)), ((own, 0.5 * T), (method, 0.5 * T))):
        logits = []
        for given in (ours, theirs):
            with ot.steering(model, *given):
                out = forward(tokens)
            logits.append(getattr(out, "logits", out))
        assert torch.equal(*logits)


def test_on_activations_it_is_its_method():
    method, a = ROWS["ODESteer"]("llama"), torch.randn(6, 32)
    own = carried(method)
    assert torch.equal(own.steer(a), method.steer(a, relative_T=0.3))
    assert torch.equal(own.steer(a, 1.0), method.steer(a, 1.0))
    assert torch.equal(own.vector_field(a), method.vector_field(a))
    assert torch.equal(own.trajectory(a).activations, method.trajectory(a, relative_T=0.3).activations)
    assert own.layer == method.layer and own.barrier is method.barrier and own.view is method.view
    (edit,) = own.edits()
    assert torch.equal(edit.apply(a, a, ot.State(torch.arange(6))), own.steer(a))
    hook = ot.steering_hook(own, positions="all")
    assert torch.equal(hook(a[None])[0], own.steer(a))
    with pytest.raises(AttributeError, match=r"has no attribute 'flow': ask its method, calibrated.method.flow"):
        _ = own.flow


@pytest.mark.parametrize("name", ROWS)
def test_every_method_is_kept_with_its_strength(name, tmp_path):
    own = replace(carried(ROWS[name]("llama"), T=0.7, relative_T=None), quantile=0.9, prompts="ab" * 32, model_name="m")
    ot.save(own, tmp_path / "kept")
    again = ot.load(tmp_path / "kept")
    assert type(again) is ot.Calibrated and type(again.method) is type(own.method)
    for field in ("T", "relative_T", "kl", "quantile", "prompts", "model_name", "positions"):
        assert getattr(again, field) == getattr(own, field), field
    tokens = torch.tensor([[1, 5, 6, 7]])
    logits = []
    model = loaded("huggingface")
    for method, *T in ((own,), (again,), (own.method, 0.7)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the name, which is no model's
            with ot.steering(model, method, *T):
                logits.append(model(tokens).logits)
    assert torch.equal(logits[0], logits[2]) and torch.equal(logits[1], logits[2])


def test_calibrate_returns_it_and_knows_where_it_holds(alone):
    method = ROWS["ODESteer"]("llama")
    found = ot.calibrate(alone, method, PROMPTS, KL, max_new_tokens=5)
    own = found.method
    assert (own.method, own.relative_T, own.T, own.kl) == (method, found.strength.relative_T, None, KL)
    assert len(own.prompts) == 64 and own.positions == "decoding"
    other = ot.calibrate(alone, method, [*PROMPTS[:2], "is"], KL, max_new_tokens=5).method
    assert other.prompts != own.prompts
    assert ot.calibrate(alone, own, PROMPTS, KL, max_new_tokens=5).method.relative_T == own.relative_T  # sought anew
    assert ot.calibrate(alone, method, PROMPTS, 0, max_new_tokens=5).method.relative_T == 0


def test_a_layer_that_is_given_is_that_of_the_method(alone):
    method = ROWS["ODESteer"]("llama")
    found = ot.calibrate(alone, method, PROMPTS, KL, layer=0, max_new_tokens=5)
    assert method.layer == 1 and found.method.layer == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(texts(alone, found.method), texts(alone, method, found.strength, layer=0))


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_list_is_multiplied_by_one_factor(kind):
    model = load(kind, "llama")
    one, other = ROWS["CAA"]("llama"), ROWS["ITI, heads"]("llama")
    given = [(one, 2.0 * one.usual_T), (other, ot.Strength(relative_T=0.5))]
    found = ot.calibrate(model, given, PROMPTS, KL, max_new_tokens=5)
    factor = found.strength.T
    assert found.sought == "factor" and f"factor = {factor:.4g} spends" in str(found)
    assert found.spent == pytest.approx(KL, rel=0.05)
    scaled = [(one, 2.0 * one.usual_T * factor), (other, ot.Strength(relative_T=0.5 * factor))]
    assert torch.equal(texts(model, found.method), texts(model, scaled))
    again = ot.calibrate(model, scaled, PROMPTS, KL, max_new_tokens=5)
    assert again.strength.T == pytest.approx(1, rel=0.05)  # the answer is not moved by the strengths it starts from
    once_more = ot.calibrate(model, found.method, PROMPTS, KL, max_new_tokens=5)
    assert once_more.sought == "factor" and once_more.strength.T == pytest.approx(1, rel=0.05)
    assert [part.relative_T is None for part in once_more.method.parts] == [True, False, False, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_name": "another/one"}, "for the model another/one, and this is"),
        ({"positions": "all"}, "for positions='all', and these are 'decoding'"),
    ],
)
def test_another_use_of_the_strength_is_told_of(change, said):
    model = load("bridge", "llama")
    own = replace(carried(ROWS["CAA"]("llama")), **change)
    uses = [lambda: texts(model, own), lambda: texts(model, [own]), lambda: texts(model, ot.Layers(parts=(own,)))]
    for use in (*uses, lambda: enter(model, own)):
        with pytest.warns(UserWarning, match=said):
            use()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts(model, own, 1.0)  # not the strength that it carries
        texts(model, carried(ROWS["CAA"]("llama")))


def test_another_layer_is_told_of(alone):
    with pytest.warns(UserWarning, match="carries the strength that spends 0.05 nats for layer 1, and this is layer 0"):
        texts(alone, carried(ROWS["CAA"]("llama")), layer=0)


def enter(model, method):
    with ot.steering(model, method):
        model(torch.tensor([[1, 5]]))


def test_names_of_a_folder_and_of_the_hub_are_one(alone):
    name = ot.calibrate(alone, ROWS["CAA"]("llama"), PROMPTS, KL, max_new_tokens=3).method.model_name
    own = replace(carried(ROWS["CAA"]("llama")), model_name=f"somebody/{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts(alone, own)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: carried(ROWS["CAA"]("llama"), T=1.0), "Give either T or relative_T"),
        (lambda: carried(ROWS["CAA"]("llama"), relative_T=None), "Give either T or relative_T"),
        (lambda: carried(ROWS["Ablation"]("llama"), T=3.0, relative_T=None), "from 0 to 1"),
        (lambda: carried(ROWS["Ablation"]("llama")), "no relative_T"),
        (lambda: carried(carried(ROWS["CAA"]("llama"))), "holds one fitted method"),
        (lambda: carried(ot.CAA), "holds one fitted method"),
        (lambda: ot.steering_hook(ROWS["CAA"]("llama")), "Give either T or relative_T"),
    ],
)
def test_what_carries_no_strength_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
