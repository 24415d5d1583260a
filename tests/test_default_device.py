"""torch.set_default_device says where a user's new tensors are made; this package's are made where their input is.

The device here is "meta", whose tensors hold no numbers: a tensor that was made there by mistake cannot give a result.
"""

import ast
from pathlib import Path

import instances
import pytest
import torch
from instances import KEPT, METHODS, Own, activations, fitted, planted, strengths
from models import WORDS, load
from torch.utils._device import _device_constructors

import odesteer_tl as ot
from odesteer_tl.backends.score import token_losses
from odesteer_tl.backends.tokenize import tokenise
from odesteer_tl.control.diagnostics.linearity import local_linearity
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.grid_search import folds_of
from odesteer_tl.save_load import load as load_method
from odesteer_tl.save_load import save

PACKAGE = Path(ot.__file__).parent
DESIRED = [f"the {word} film was great" for word in WORDS[:6]]
UNDESIRED = [f"the {word} plot is dull bad" for word in WORDS[3:9]]


def test_every_tensor_that_is_made_says_where():
    constructors = {function.__name__ for function in _device_constructors()}
    silent = [
        f"{file.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node.func)}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in constructors
        if ast.unparse(node.func.value) == "torch" and "device" not in [keyword.arg for keyword in node.keywords]
    ]
    assert not silent


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_fitted_kept_and_steers_as_without(name, monkeypatch, tmp_path):
    data = {sizes: planted(*sizes) for sizes in ((), (60, 60), (5, 6))}
    a, expected = activations(4, dtype=torch.float32), fitted(name)
    given = strengths(name, {"T": 0.7}, {"relative_T": 0.1})
    monkeypatch.setattr(instances, "planted", lambda *sizes: data[sizes])

    def steered(method):
        barrier = getattr(method, "barrier", None)
        others = () if barrier is None else (barrier.value(a),)
        ways = [way.steer(a, **strength) for way in (method, method.portable()) for strength in given]
        return [method.vector_field(a), *ways, *others, method.trajectory(a, **given[0]).activations]

    before = steered(expected)
    with torch.device("meta"):
        method = METHODS[name]()
        if name in KEPT:
            save(method, tmp_path / "kept")
            method = load_method(tmp_path / "kept")
        after = steered(method)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def in_a_model(kind, folder, generates=True):
    """What is read from a model, fitted, steered, scored, kept and measured; `generates`: and generated."""
    model = load(kind, "llama")
    ids = tokenise(model, [*DESIRED[:2], "it was slow"])
    acts = ot.collect(model, DESIRED, UNDESIRED, layer=1, position="all")
    acts.save(folder / "acts")
    acts = ContrastiveActivations.load(folder / "acts")
    method = ot.ODESteer.fit(acts)
    loop = ot.ALQR.fit(model, DESIRED, UNDESIRED, n_jacobians=2)
    save(loop, folder / "loop")
    loop = load_method(folder / "loop")
    made = [ids.tokens, ids.mask, acts.desired, acts.groups[0], acts.split(seed=1, fraction=0.5)[0].desired]
    made += [folds_of(acts, 2)[0][0].desired, loop.answers, local_linearity(model, DESIRED[:2], layers=[1]).similarity]
    for steering, T in ((method, 2.0), (loop, 1.0), (ot.Layers((method,)), 1.0)):
        for positions in ("decoding", "all", "prompt", slice(1, 3)):
            with ot.steering(model, steering, T=T, positions=positions, prompt_lengths=[4, 4, 3]):
                made.append(run(model, ids))
    if generates:
        out = ot.generate(model, ["the film", "it was slow but"], method, T=2.0, max_new_tokens=4, do_sample=True)
        made += [out.tokens, out.mask, token_losses(model, out)[0]]
    return made


def run(model, ids):
    with torch.no_grad():
        out = model(ids.tokens, attention_mask=ids.mask.long())
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("kind", ["huggingface", "bridge"])
def test_a_model_is_read_and_steered_as_without(kind, tmp_path):
    generates = kind == "huggingface"  # TransformerLens' own generate fails under another default device
    before = in_a_model(kind, tmp_path / "before", generates)
    with torch.device("meta"):
        after = in_a_model(kind, tmp_path / "after", generates)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_users_own_code_makes_its_tensors_where_the_user_says():
    class Asks(Own):
        def value(self, a):
            seen.append(torch.zeros(1).device.type)
            return super().value(a)

    seen = []
    with torch.device("meta"):
        ot.GradientFlow(Asks(), layer=3).steer(activations(2), T=1.0)
    assert set(seen) == {"meta"}
