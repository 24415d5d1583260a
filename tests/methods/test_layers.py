"""Laws of Layers: its parts act in the order of the model, each at its own site and as if hooked in there by hand."""

from functools import cache

import pytest
import torch
from instances import without_shape_checks
from models import BACKENDS, load, width
from oracle import PROMPTS, STEPS, TOLERANCE, generate
from saved_folders import resealed

import odesteer_tl as ot
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

RANDOM = ["llama", "gpt2"]
ROWS = PROMPTS["batch"]


@cache
def mixed(family):
    """Out of order: a curved flow after block 1, heads of three layers, and twice the output of block 0."""
    first = oracle.activations(family, 0)
    heads = parity_rows()["ITI, heads"](family)
    assert {part.layer for part in heads.parts} == {0, 1, 2}
    return ot.Layers(
        parts=(ot.ODESteer.fit(oracle.activations(family)), heads, ot.RepE.fit(first), ot.StepODESteer.fit(first))
    )


def places(method, **strength):
    """Where its parts act, in the order of the model, and what by hand is done there."""
    flat = [part for each in method.parts for part in getattr(each, "parts", (each,))]
    flat.sort(key=lambda part: (part.origin.layer, "z" not in part.origin.hook_name))  # of each block z comes first
    return [
        (part.origin.layer, "z" if part.origin.hook_name.endswith("hook_z") else "resid_post",
         lambda a, query, part=part: part.steer(a, **strength))
        for part in flat
    ]  # fmt: skip


@pytest.fixture(scope="module", params=[(kind, family) for kind in BACKENDS for family in RANDOM], ids="-".join)
def loaded(request):
    return *request.param, load(*request.param)


@pytest.mark.parametrize("strength", [{"T": 0.4}, {"T": torch.tensor([0.6, -0.4, 0.3])}, {"relative_T": 0.15}], ids=str)
def test_steered_logits_are_those_of_hooks_at_every_site(loaded, strength):
    """With a cache and without in turn, so that every two of library, model, strength and cache meet."""
    kind, family, model = loaded
    method, kept = mixed(family), "relative_T" in strength or torch.is_tensor(strength["T"])
    use_cache = (BACKENDS.index(kind) + RANDOM.index(family) + kept) % 2 == 0
    with ot.steering(model, method, **strength) as report:
        new, found = generate(model, kind, ROWS, use_cache)
    for number, (row, generated, mine) in enumerate(zip(ROWS, new.tolist(), found, strict=True)):
        own = {name: float(v[number]) if torch.is_tensor(v) else v for name, v in strength.items()}
        whole, last = row + generated[:-1], len(row) - 1
        steered = oracle.logits(family, whole, places(method, **own), range(last, len(whole)))[last:]
        plain = oracle.logits(family, whole, (), ())[last:]
        assert (mine - steered).abs().max() <= TOLERANCE
        assert (steered - plain).abs().max() >= 0.1
    assert report.tokens_steered == {layer: len(ROWS) * STEPS for layer in (0, 1, 2)}


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_does_what_the_list_of_its_parts_does(loaded, beams):
    kind, family, model = loaded
    if kind == "hooked":
        beams = 1  # it has no beam search
    method, T = mixed(family), torch.tensor([2.0, -2.0, 1.0])
    texts = ["the film is good", "a plot", "it was never slow"]
    options = {"max_new_tokens": 6, "num_beams": beams, "stop_at_eos": False}
    whole = ot.generate(model, texts, method, T, **options)
    parts = ot.generate(model, texts, [(part, T) for part in method.parts], **options)
    inside = ot.generate(model, texts, [(method, T)], **options)
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.tokens, inside.tokens)
    assert whole.report.tokens_steered == parts.report.tokens_steered
    assert not torch.equal(whole.tokens, ot.generate(model, texts, **options).tokens)


def test_nothing_is_left_on_the_model(loaded):
    kind, family, model = loaded
    method, tokens = mixed(family), torch.tensor([[1, 5, 6]])

    def state():
        inner = getattr(model, "_module", model)
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in inner.modules()]
        return hooks, len(getattr(model, "_edits", ()))

    def logits():
        if kind != "nnsight":
            return model(tokens).detach()
        with model.trace(tokens):
            found = model.lm_head.output.save()
        return found.detach()

    before, plain = state(), logits()
    with pytest.raises(RuntimeError, match="mine"), ot.steering(model, method, 1.0):
        assert not torch.allclose(logits(), plain, atol=0.1)
        raise RuntimeError("mine")
    with pytest.raises(ValueError, match="T holds 2 values"), ot.steering(model, method, torch.ones(2)):
        generate(model, kind, ROWS)
    assert state() == before and torch.equal(logits(), plain)


def test_each_part_is_checked_by_its_own_origin(loaded):
    _, family, model = loaded
    good = ot.CAA.fit(oracle.activations(family))
    d = width(model)
    for side, fields, said in (
        (torch.randn(4, d + 1), {"layer": 0}, f"fitted at d_model {d + 1}"),
        (torch.randn(4, d), {"layer": 7}, "Layer 7 does not exist"),
        (torch.randn(4, d), {"layer": 0, "processing": "centred"}, "centred"),
    ):
        bad = ot.CAA.fit(ot.ContrastiveActivations(side, -side, **fields))
        with pytest.raises(ValueError, match=said), ot.steering(model, ot.Layers((good, bad)), 1.0):
            pass


@pytest.mark.parametrize("kind", BACKENDS)
def test_rounding_is_warned_of_by_part(kind):
    model = load(kind, "llama", dtype=torch.bfloat16)
    method = ot.RepE.fit_layers([oracle.activations("llama", layer) for layer in (0, 1)])
    with pytest.warns(UserWarning, match="lost to rounding"), ot.steering(model, method, relative_T=1e-3):
        generate(model, kind, [[1, 5]]) if kind != "nnsight" else model.generate(
            torch.tensor([[1, 5]]), max_new_tokens=1
        )


def test_its_edits_come_in_the_order_of_the_model():
    method = mixed("llama")
    sites = [(0, "z"), (0, "resid_post"), (0, "resid_post"), (1, "z"), (1, "resid_post"), (2, "z")]
    strength = {"T": 0.5}
    for each in (method, method.portable()):
        assert [(edit.write.layer, edit.write.name) for edit in each.edits(**strength)] == sites
    a = torch.randn(3, 32)
    for edit, there in zip(method.edits(**strength), method.portable().edits(**strength), strict=True):
        rows = ot.State(torch.arange(3))
        torch.testing.assert_close(edit.apply(a, a, rows), there.apply(a, a, rows), rtol=1e-5, atol=1e-5)
    twice = [edit.apply(a, a, rows) for edit in method.edits(**strength)[1:3]]
    assert torch.equal(twice[0], method.parts[2].steer(a, 0.5))  # of equals the first given
    assert torch.equal(twice[1], method.parts[3].steer(a, 0.5))


def test_what_it_has_not_of_its_own_it_says():
    method, a = mixed("llama"), torch.randn(2, 32)
    assert method.layer is None and method.barrier is None
    assert (method.origin.processing, method.origin.d_model) == ("raw", None)
    for act in (lambda: method.steer(a, T=1.0), lambda: method.vector_field(a)):
        with pytest.raises(ValueError, match=r"method\.parts\[i\]\."):
            act()
    for each in (method, method.portable()):
        with pytest.raises(ValueError, match=r"leave layer= out"):
            each.edits(T=1.0, layer=1)
        with pytest.raises(ValueError, match="either T or relative_T"):
            each.edits()
    model = load("nnsight", "llama")
    for call in (
        lambda: ot.generate(model, "a", method, 1.0, layer=1),
        lambda: ot.generate(model, "a", [(method, 1.0)], layer=1),
        lambda: ot.steering(model, method, 1.0, layer=1).__enter__(),
    ):
        with pytest.raises(ValueError, match=r"leave layer= out"):
            call()
    with pytest.raises(Exception, match=r"leave layer= out"), model.trace(torch.tensor([[1, 5]])):
        ot.intervene(model, method, 1.0, layer=1)
    with pytest.raises(ValueError, match=r"use ot\.steering"):
        ot.steering_hook(method, 1.0)


def test_what_is_no_set_of_fitted_methods_is_refused():
    loose = ot.CAA.fit(ot.ContrastiveActivations(torch.randn(3, 8), torch.randn(3, 8)))
    with without_shape_checks():
        for parts, said in (
            ((), "at least one"),
            (loose, "at least one"),
            ((3,), "part 0 is a int"),
            ((ot.CAA,), "part 0 is the class CAA"),
            ((loose,), "Part 0 of Layers, CAA, was fitted without a layer"),
        ):
            with pytest.raises(ValueError, match=said):
                ot.Layers(parts=parts)
        assert ot.Layers(list(mixed("llama").parts)).parts == mixed("llama").parts


def test_it_is_kept_and_moved_like_any_method(tmp_path):
    method, a = mixed("llama"), torch.randn(3, 32)
    ot.save(method, tmp_path)
    again = ot.load(tmp_path)
    assert isinstance(again, ot.Layers) and [type(p) for p in again.parts] == [type(p) for p in method.parts]
    assert again.origin == method.origin
    pairs = [(e, f) for e, f in zip(again.edits(T=0.7), method.edits(T=0.7), strict=True)]
    for one, other in pairs:
        assert one.write == other.write
        assert torch.equal(one.apply(a, a, ot.State(torch.arange(3))), other.apply(a, a, ot.State(torch.arange(3))))
    assert method.to(dtype=torch.float64).parts[1].parts[0].shift.dtype == torch.float64
    resealed(tmp_path, lambda tree: tree["method"]["parts"][0].update(steps="many"))
    with without_shape_checks(), pytest.raises(ValueError, match="ODESteer"):
        ot.load(tmp_path)


def test_repe_over_layers_is_repe_at_each():
    acts = [oracle.activations("gpt2", layer) for layer in (2, 0)]
    method = ot.RepE.fit_layers(acts, parity=True)
    for part, each in zip(method.parts, acts, strict=True):
        assert part.layer == each.layer and torch.equal(part.direction, ot.RepE.fit(each, parity=True).direction)
