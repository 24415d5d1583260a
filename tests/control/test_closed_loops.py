"""Laws of closed loops in models: they measure what enters a block, add to what leaves it, on the chosen tokens only.

The oracle is the law written a second time, under torch hooks on the Hugging Face model (`parity.oracle`).
"""

import copy
from dataclasses import replace
from functools import cache

import nnsight
import pytest
import torch
from instances import without_shape_checks
from models import BACKENDS, hugging_face, load
from oracle import PROMPTS, STEPS, TOLERANCE, block, generate, steered_positions

import odesteer_tl as ot
from odesteer_tl import _memory
from odesteer_tl.backends.jacobians import mean_jacobians
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

RANDOM = ["llama", "gpt2"]
LOOPS = ["A-LQR", "S-PID"]
ROWS = PROMPTS["batch"]


@cache
def fitted(name, family):
    return parity_rows()[name](family)


@pytest.fixture(scope="module", params=[(kind, family) for kind in BACKENDS for family in RANDOM], ids="-".join)
def loaded(request):
    return *request.param, load(*request.param)


def check(family, method, new, found, rule, strengths):
    for row, generated, mine, T in zip(ROWS, new.tolist(), found, strengths, strict=True):
        whole, last = row + generated[:-1], len(row) - 1
        positions = steered_positions(rule, len(row), len(whole))
        steered = oracle.logits(family, whole, oracle.places(method, T), positions)[last:]
        plain = oracle.logits(family, whole, (), ())[last:]
        assert (mine - steered).abs().max() <= TOLERANCE
        assert (steered - plain).abs().max() >= 0.1


RULES = ["decoding", "generated", "prompt", "all", slice(0, None, 2)]
PASSES = [*((rule, True) for rule in RULES), *((rule, False) for rule in RULES[:3])]  # a slice counts as "all" does


@pytest.mark.parametrize("rule, cache", PASSES, ids=str)
@pytest.mark.parametrize("name", LOOPS)
def test_steered_logits_are_those_of_the_law_by_hand(loaded, name, rule, cache):
    """Unequal prompts in one batch, T for each: a wrong row, token or layer, or a pad that counts, would show."""
    kind, family, model = loaded
    method, T = fitted(name, family), torch.tensor([1.0, 1.7, -0.5])
    with ot.steering(model, method, T, positions=rule) as report:
        new, found = generate(model, kind, ROWS, cache)
    check(family, method, new, found, rule, T.tolist())
    total = sum(len(steered_positions(rule, len(row), len(row) + STEPS - 1)) for row in ROWS)
    assert report.tokens_steered == {0: total, 1: total, 2: total}


@pytest.mark.parametrize("name", LOOPS)
def test_some_layers_and_several_features(loaded, name):
    kind, family, model = loaded
    whole = fitted(name, family)
    generator = torch.Generator().manual_seed(0)
    other = torch.nn.functional.normalize(torch.randn(2, 1, 32, generator=generator), dim=-1)
    two = {"directions": torch.cat([whole.directions[[0, 2]], other], 1)}
    if name == "A-LQR":
        two["answers"] = torch.cat([whole.answers[[0, 2]], 0.3 * other.flip(2)], 1)
    points = torch.cat([whole.set_points[[0, 2]], torch.tensor([[3.0], [-4.0]])], 1)
    method = replace(whole, layers=(0, 2), set_points=points, **two)
    with ot.steering(model, method, 1.3) as report:
        new, found = generate(model, kind, ROWS)
    check(family, method, new, found, "decoding", [1.3] * 3)
    assert set(report.tokens_steered) == {0, 2}
    apart = [replace(method, set_points=points[:, [n]], **{k: v[:, [n]] for k, v in two.items()}) for n in (0, 1)]
    with ot.steering(model, [(one, 1.3) for one in apart]):
        again, logits = generate(model, kind, ROWS)
    assert torch.equal(new, again) and (logits - found).abs().max() <= TOLERANCE  # the sum of both, in any order
    with ot.steering(model, ot.Layers(tuple(apart)), 1.3):
        assert torch.equal(generate(model, kind, ROWS)[0], new)


@pytest.mark.parametrize("name", LOOPS)
def test_generate_and_intervene_do_the_same(loaded, name):
    kind, family, model = loaded
    method, texts = fitted(name, family), ["the film is good", "a plot", "it was never slow"]
    T = torch.tensor([1.0, 2.0, -1.0])
    options = {"max_new_tokens": 6, "stop_at_eos": False}
    out = ot.generate(model, texts, method, T, **options)
    alone = [ot.generate(model, text, method, float(t), **options) for text, t in zip(texts, T, strict=True)]
    assert out.texts == [each.texts[0] for each in alone]
    assert out.report.tokens_steered == {0: 18, 1: 18, 2: 18}
    if kind == "nnsight":
        tokens = torch.tensor([[1, 5, 6, 7]])
        with model.trace(tokens):
            count = nnsight.save(ot.intervene(model, method, 1.0))
            found = model.lm_head.output.save()
        steered = oracle.logits(family, tokens[0].tolist(), oracle.places(method, 1.0), [3])
        assert (found[0] - steered).abs().max() <= TOLERANCE and count == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("family", RANDOM)
def test_parity_is_the_released_loop_token_by_token(family):
    """Sum and error in two variables that nobody resets but every tenth layer, at the last column of every pass."""
    kind, model = "bridge", load("bridge", family)
    method, row = replace(fitted("S-PID", family), kp=0.4, ki=0.2, kd=0.3, parity=True), ROWS[0]
    with ot.steering(model, method, 1.5):
        new, found = generate(model, kind, [row])
    hf, held = hugging_face(family), {"sum": torch.zeros(1, 32), "last": torch.zeros(1, 32)}

    def hook(layer):
        def add(module, args, out):
            z = args[0][:, -1]
            e = (1.5 * method.set_points[layer] - (z * method.directions[layer, 0]).sum(-1)) * method.directions[layer]
            held["sum"] = held["sum"] + e if layer % 10 else torch.zeros_like(e)
            out = out.clone()
            out[:, -1] += 0.4 * e + 0.2 * held["sum"] + 0.3 * (e - held["last"])
            held["last"] = e
            return out

        return block(hf, layer).register_forward_hook(add)

    handles, cache = [hook(layer) for layer in range(3)], None
    try:
        for step, tokens in enumerate([row, *([token] for token in new[0, :-1].tolist())]):
            with torch.no_grad():
                out = hf(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            assert (out.logits[0, -1] - found[0, step]).abs().max() <= TOLERANCE
    finally:
        for handle in handles:
            handle.remove()
    with ot.steering(model, replace(method, parity=False), 1.5):
        assert (generate(model, kind, [row])[1][:, 1] - found[:, 1]).abs().max() >= 100 * TOLERANCE


def at_output(edits):
    """The mistake of a port: measured one block late."""
    return [ot.Edit(edit.write, edit.write, edit.apply) for edit in edits]


def one_layer_late(edits):
    places = [ot.Site(edit.write.layer + 1) for edit in edits[:-1]]
    return [ot.Edit(edit.read, place, edit.apply) for edit, place in zip(edits, places, strict=False)]


def another_layers_numbers(edits):
    return [
        ot.Edit(edit.read, edit.write, other.apply) for edit, other in zip(edits, [*edits[1:], edits[0]], strict=True)
    ]


def one_state_for_all_passes(edits):
    kept = {}

    def held(edit):
        def apply(read, write, state):
            if any(value.shape != read.shape for value in kept.values()):
                kept.clear()
            return edit.apply(read, write, ot.State(state.rows, kept))

        return apply

    return [ot.Edit(edit.read, edit.write, held(edit)) for edit in edits]


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(
    "wrong", [at_output, one_layer_late, another_layers_numbers, one_state_for_all_passes, lambda edits: edits[1:]]
)
def test_wrong_loops_deviate(name, wrong):
    """Each by far more than the tolerance; A-LQR alone keeps no state that could be wrong."""
    model, right = load("bridge", "gpt2"), fitted(name, "gpt2")

    class Mutant:
        origin = right.origin

        def edits(self, T=None, *, relative_T=None, layer=None):
            return wrong(right.edits(T, relative_T=relative_T, layer=layer))

    with ot.steering(model, Mutant(), 1.5):
        new, found = generate(model, "bridge", ROWS)
    worst, _ = oracle.differences(found, oracle.steered_and_plain("gpt2", ROWS, new, oracle.places(right, 1.5)))
    stateless = name == "A-LQR" and wrong is one_state_for_all_passes
    assert worst <= TOLERANCE if stateless else worst >= 100 * TOLERANCE


def errors(model, method, tokens, T, steered):
    """|β − β*| [layers, rows] at what enters each block, at the last token."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in method.layers]

    def run():
        return model.run_with_cache(tokens, names_filter=names)[1]

    if steered:
        with ot.steering(model, method, T):
            cached = run()
    else:
        cached = run()
    beta = torch.stack([(cached[n][:, -1] * v[0]).sum(-1) for n, v in zip(names, method.directions, strict=True)])
    return (T * method.set_points - beta).abs()


def test_matrices_that_do_not_fit_the_memory_are_refused_before_they_are_made(monkeypatch):
    model, (desired, undesired) = load("bridge", "llama"), oracle.texts()
    monkeypatch.setattr(_memory, "room", lambda device: 1_000)
    with pytest.raises(ValueError, match=r"A-LQR by matrices of 32 × 32 needs 32,768 bytes .* matrix_free=True"):
        ot.ALQR.fit(model, desired, undesired, n_jacobians=2)
    ot.ALQR.fit(model, desired, undesired, n_jacobians=2, matrix_free=True)


@cache
def regulator(family, r):
    """Fitted once for both signs of T."""
    return ot.ALQR.fit(load("bridge", family), *oracle.texts(), q=1.0, r=r, q_f=1.0, n_jacobians=10)


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("T", [2.0, -2.0])
def test_the_closed_loop_comes_nearer_to_its_set_points_at_every_layer_but_the_first(family, T):
    model = load("bridge", family)
    desired, undesired = oracle.texts()
    method = regulator(family, 0.1)
    tokens = (undesired if T > 0 else desired)[:20]
    before, after = (errors(model, method, tokens, T, steered) for steered in (False, True))
    torch.testing.assert_close(after[0], before[0])  # what enters the first block, nobody has touched
    assert (after[1:] < before[1:]).all()
    cheap = errors(model, replace(method, answers=0 * method.answers), tokens, T, True)
    torch.testing.assert_close(cheap, before)
    dear = regulator(family, 100.0)
    assert after[1:].mean() < errors(model, dear, tokens, T, True)[1:].mean() < before[1:].mean()


def test_the_fit_is_its_parts(loaded):
    """Means by the oracle's own reading, gains by a recursion that inverts, w = K v."""
    _, family, model = loaded

    def hooks():
        inner = getattr(model, "_module", model)
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in inner.modules()]

    desired, undesired = oracle.texts()
    ot.collect(model, desired[:1], undesired[:1], 0)  # a bridge's first pass leaves hooks of transformers' own
    before = hooks()
    options = {"q": 0.5, "r": 2.0, "q_f": 0.25, "n_jacobians": 3, "keep_gains": True, "seed": 4, "progress": False}
    method = ot.ALQR.fit(model, desired, undesired, **options)
    acts = [oracle.activations(family, layer) for layer in (0, 1)]  # what leaves a block enters the next
    for number, each in enumerate(acts, start=1):
        e = each.desired.double().mean(0) - each.undesired.double().mean(0)
        torch.testing.assert_close(method.set_points[number], e.norm().float().reshape(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(method.directions[number, 0], (e / e.norm()).float(), rtol=1e-4, atol=1e-5)
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(4))[:3].sort()[0]
    prompts = [desired[i : i + 1] for i in chosen.tolist()]
    S = 0.25 * torch.eye(32, dtype=torch.float64)
    for layer, A in zip((2, 1, 0), mean_jacobians(model, prompts, [2, 1, 0]), strict=True):
        A = A.double()
        K = torch.linalg.inv(S + 2.0 * torch.eye(32)) @ S @ A
        S = 0.5 * torch.eye(32) + A.T @ S @ A - A.T @ S @ K
        torch.testing.assert_close(method.gains[layer], K.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(method.answers[layer, 0], (K @ method.directions[layer, 0].double()).float())
    assert method.layers == (0, 1, 2) and method.layer is None and method.barrier is None
    assert (method.origin.d_model, method.origin.processing, method.origin.position) == (32, "raw", "last")
    assert hooks() == before


@pytest.mark.parametrize("layers", [[1, 0], [0]])
def test_blocks_that_are_not_controlled_count_in_those_that_are(layers):
    """Up to the last block, by texts cut to 4 tokens."""
    model, (desired, undesired) = load("nnsight", "gpt2"), oracle.texts()
    options = {"q": 0.5, "r": 2.0, "q_f": 0.25, "n_jacobians": 60, "context": 4}
    method = ot.ALQR.fit(model, desired, undesired, layers=layers, **options)
    assert method.layers == tuple(sorted(layers))
    S, prompts = 0.25 * torch.eye(32, dtype=torch.float64), list(desired[:, :4].split(1))
    for layer, A in zip((2, 1, 0), mean_jacobians(model, prompts, [2, 1, 0]), strict=True):
        A = A.double()
        K = torch.linalg.inv(S + 2.0 * torch.eye(32)) @ S @ A * (layer in layers)
        S = 0.5 * torch.eye(32) + A.T @ S @ A - A.T @ S @ K
        if layer in layers:
            number = method.layers.index(layer)
            expected = (K @ method.directions[number, 0].double()).float()
            torch.testing.assert_close(method.answers[number, 0], expected, rtol=1e-4, atol=1e-5)


FITS = [(kind, RANDOM[turn % 2], None) for turn, kind in enumerate(BACKENDS)]  # each library meets one of them
FITS += [("nnsight", "llama", [0, 2]), (BACKENDS[0], "gpt2", [1])]  # which layers there are, no model decides


@pytest.mark.parametrize("kind, family, layers", FITS)
def test_a_fit_without_matrices_is_the_exact_one(kind, family, layers):
    model = load(kind, family)
    desired, undesired = oracle.texts()
    options = {"layers": layers, "n_jacobians": 2, "context": 4, "also": [(undesired[:9], desired[:7])]}
    exact = ot.ALQR.fit(model, desired, undesired, **options)
    free = ot.ALQR.fit(model, desired, undesired, matrix_free=True, chunk=2, **options)
    assert exact.layers == free.layers == tuple(layers or (0, 1, 2)) and exact.answers.shape[1] == 2
    assert torch.equal(exact.directions, free.directions)
    off = (exact.answers - free.answers).norm(dim=-1) / exact.answers.norm(dim=-1)
    assert off.max() <= 1e-4 and exact.answers.norm(dim=-1).min() > 1e-2


def test_a_first_layer_that_all_texts_enter_alike_is_left_alone():
    """A common last token: e = 0 before the first block, so that v, the set-point and w are 0 there."""
    model = load("nnsight", "llama")
    desired, undesired = (torch.cat([side, torch.full((60, 1), 9)], 1) for side in oracle.texts())
    for method in (ot.ALQR.fit(model, desired, undesired, n_jacobians=2), ot.SPID.fit(model, desired, undesired)):
        assert not method.directions[0].any() and not method.set_points[0].any() and method.set_points[1:].all()
        a = torch.randn(2, 32)
        assert torch.equal(method.edits(T=1.0)[0].apply(a, a, ot.State(torch.arange(2))), a)


@pytest.mark.parametrize("fit", [ot.ALQR.fit, ot.SPID.fit])
def test_what_cannot_be_fitted_is_refused_by_name(fit):
    model, (desired, undesired) = load("nnsight", "gpt2"), oracle.texts()
    with without_shape_checks():
        for given, options, said in (
            (([], undesired), {}, "No text"),
            ((desired, undesired), {"layers": []}, "No layers"),
            ((desired, undesired), {"layers": [0, 3]}, "Layer 3 does not exist"),
            ((desired, undesired), {"layers": [1, 1]}, "given once"),
            ((desired, undesired), {"layers": 2}, r"such as \[2\], or None for all; got 2"),
            ((desired, undesired), {"also": (["a", "b"], ["c", "d"])}, r"also=\[\(desired2, undesired2\)\]"),
            ((desired, undesired), {"also": [(desired,)]}, "also is a list of pairs"),
            ((desired, undesired), {"also": None}, "also is a list of pairs"),
            ((desired, desired), {}, "same at every layer: pass other texts"),
            ((desired, undesired), {"also": [(desired, desired)]}, "same at every layer: pass other texts"),
        ):
            with pytest.raises(ValueError, match=said):
                fit(model, *given, **options)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"q": 0.0}, "q is a weight of the cost"),
        ({"r": -1.0}, "r is a weight"),
        ({"q_f": float("nan")}, "q_f is a weight"),
        ({"n_jacobians": 0}, "n_jacobians must be at least 1"),
        ({"context": 0}, "context must be"),
        ({"chunk": 0}, "chunk must be"),
        ({"keep_gains": True, "matrix_free": True}, "pass one of them"),
    ],
)
def test_what_a_regulator_cannot_be_is_refused_before_the_model_runs(options, said):
    with pytest.raises(ValueError, match=said):
        ot.ALQR.fit(object(), ["a"], ["b"], **options)


@pytest.mark.parametrize("options", [{"kp": float("inf")}, {"ki": "1"}, {"kd": True}], ids=str)
def test_what_a_controller_cannot_be_is_refused_before_the_model_runs(options):
    with without_shape_checks(), pytest.raises(ValueError, match="is a finite number"):
        ot.SPID.fit(object(), ["a"], ["b"], **options)


def test_a_loop_of_another_model_or_processing_is_refused(loaded):
    _, family, model = loaded
    for name in LOOPS:
        good = fitted(name, family)
        for change, said in (
            ({"origin": replace(good.origin, processing="centred")}, "fitted on centred weights"),
            ({"layers": (0, 1, 3)}, "Layer 3 does not exist"),
        ):
            with pytest.raises(ValueError, match=said), ot.steering(model, replace(good, **change), 1.0):
                pass


def test_fitting_inside_a_steering_block_is_refused():
    model = load("bridge", "gpt2")
    method = fitted("S-PID", "gpt2")
    with pytest.raises(ValueError, match="outside a forward pass"), ot.steering(model, method, 1.0):
        ot.ALQR.fit(model, *oracle.texts(), n_jacobians=1)


@pytest.mark.parametrize("name", LOOPS)
def test_autocast_of_the_models_is_not_the_laws(name):
    """The model's products are in bfloat16 then; the stream that the law reads and writes is in float32."""
    method, model, seen = fitted(name, "llama"), copy.deepcopy(hugging_face("llama")), []
    first = method.layers[0]
    block(model, first).register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.tensor(ROWS[:1]))
        with ot.steering(model, method, 1.3, positions="all"):
            model(torch.tensor(ROWS[:1]))
    (z, plain), (same, steered) = seen
    assert torch.equal(z, same) and steered.dtype == torch.float32
    _, _, law = oracle.places(method, 1.3)[0]
    expected = law(plain[0], z[0])
    assert (expected - plain[0]).abs().max() > 0.1
    torch.testing.assert_close(steered[0], expected, rtol=0, atol=1e-5)
