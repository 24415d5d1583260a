"""Directional ablation: a projection by an oracle of its own, a planted direction, and weights that are folded."""

import copy

import models
import pytest
import torch
from instances import D_MODEL, activations, planted, without_shape_checks
from instances import fitted as instance
from torch.nn.utils import parametrizations, parametrize, prune

import odesteer_tl as ot
from odesteer_tl.parity import oracle
from odesteer_tl.parity.models import as_bridge, as_hooked, as_nnsight, hugging_face, tokenizer
from odesteer_tl.portable.sites import Site

IDS = torch.tensor([[1, 5, 6, 7, 9, 12, 20, 4]])
KINDS = [
    "bridge",
    "compatible bridge",
    "nnsight",
    "huggingface",
    *(kind for kind in models.BACKENDS if kind == "hooked"),
]


def projector(rows):
    """QQᵀ of the span of some rows, by least squares and not by an orthonormal basis."""
    return rows.T @ torch.linalg.pinv(rows.T)


def test_what_is_taken_out_is_the_projection_onto_the_span():
    rows, a = activations(3, seed=1), activations(5)
    rows[1] = rows[0] + 0.01 * rows[1]  # all but parallel
    method = ot.Ablation(rows, layer=2)
    for T in (0.3, 1.0):
        torch.testing.assert_close(method.steer(a, T=T), a - T * a @ projector(rows), rtol=1e-9, atol=1e-9)
    gone = method.steer(a, T=1.0)
    assert (gone @ rows.T).abs().max() < 1e-12 * 50
    torch.testing.assert_close(method.steer(gone, T=1.0), gone, rtol=0, atol=1e-12)  # once is always
    assert (gone.norm(dim=1) < a.norm(dim=1)).all()
    torch.testing.assert_close(ot.Ablation(-3 * rows.flip(0)).steer(a, T=1.0), gone, rtol=1e-9, atol=1e-9)


def test_directions_one_after_the_other_are_their_plane_where_they_are_at_right_angles():
    one, two = (ot.Ablation(row) for row in instance("angular").plane.double())
    a, both = activations(4), ot.Ablation(instance("angular").plane)
    torch.testing.assert_close(two.steer(one.steer(a, T=1.0), T=1.0), both.steer(a, T=1.0), rtol=0, atol=1e-6)


def test_a_planted_direction_is_found_and_nothing_of_it_is_left():
    """Two clouds around ±μ that differ along one direction and are spread along all others."""
    generator = torch.Generator().manual_seed(3)
    planted_there = torch.nn.functional.normalize(torch.randn(D_MODEL, generator=generator), dim=0)
    noise = torch.randn(2, 4000, D_MODEL, generator=generator)
    noise = noise - noise @ planted_there[:, None] * planted_there
    acts = ot.ContrastiveActivations(noise[0] + 2 * planted_there, noise[1] - planted_there, layer=1)
    method = ot.Ablation.fit(acts)
    assert float((method.directions[0] @ planted_there).abs()) > 0.999
    left = method.steer(acts.desired, T=1.0) - noise[0]
    assert float(left.norm(dim=1).median()) < 0.1  # of 2: the rest is what the other directions lose by chance
    swapped = ot.ContrastiveActivations(acts.undesired, acts.desired, layer=1)
    torch.testing.assert_close(ot.Ablation.fit(swapped).steer(noise[0], T=1.0), method.steer(noise[0], T=1.0))


def test_the_barrier_is_a_potential_of_the_field():
    method, a = instance("ablation").to(dtype=torch.float64), activations(4)
    slope = torch.func.grad(lambda x: method.barrier.value(x).sum())(a)
    torch.testing.assert_close(method.vector_field(a), slope, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(method.barrier.grad(a), slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"T": 1.5}, r"T counts fractions taken out here, from 0 to 1, .*: pass T, for example T=1, .*; got T=1\.5"),
        ({"T": -0.1}, r"from 0 to 1, .*; got T=-0\.1"),
        ({"T": torch.tensor([0.5, 2.0])}, r"from 0 to 1, .*; got T=tensor\("),
        ({"relative_T": 0.5}, r"pass T, for example T=1, and no relative_T; got T=None, relative_T=0\.5"),
        ({"relative_T": 0}, "and no relative_T"),
    ],
)
def test_a_strength_that_is_no_fraction_is_refused_wherever_it_is_given(strength, message):
    method, a = instance("ablation"), activations(2)
    calls = [method.steer, method.portable().steer, method.trajectory]
    for call in [*(lambda each=each, **s: each(a, **s) for each in calls), method.edits, method.portable().edits]:
        with pytest.raises(ValueError, match=message):
            call(**strength)
    with pytest.raises(ValueError, match=message):
        method.everywhere(2).edits(**strength)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (torch.zeros(4), "not 0"),
        (torch.tensor([1.0, float("nan")]), "finite"),
        (torch.ones(2, 4), "in the span of those before it"),
        (torch.eye(4)[:, :3], "at most d_model"),
        (torch.ones(1, 1, 4), r"\[d_model\] or \[k, d_model\], got \(1, 1, 4\)"),
        ([1.0, 0.0], "got list"),
    ],
)
def test_directions_that_are_none_are_refused(directions, message):
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        ot.Ablation(directions)


def test_a_layer_and_a_width_are_those_of_its_origin():
    method = instance("ablation")
    assert (method.layer, method.origin.d_model) == (3, D_MODEL)
    assert ot.Ablation(method.directions, layer=5, origin=method.origin).origin.hook_name == "blocks.5.hook_resid_post"
    with pytest.raises(ValueError, match="have 3 numbers, but d_model of their origin is 24"):
        ot.Ablation(torch.ones(3), origin=method.origin)
    with pytest.raises(ValueError, match="without a layer"):
        ot.Ablation(torch.ones(3)).edits(T=1.0)
    at_two = ot.Ablation.fit_layers([planted(layer=1), planted(layer=4, seed=2)])
    assert [part.layer for part in at_two.parts] == [1, 4]


def test_everywhere_is_after_every_write():
    sites = [edit.write for edit in instance("ablation").everywhere(2).edits(T=1.0)]
    assert sites == [Site(0, "resid_pre"), *(Site(i, name) for i in (0, 1) for name in ("attn_out", "mlp_out"))]
    with pytest.raises(ValueError, match="at least 1; got 0"):
        instance("ablation").everywhere(0)


def wrapped(kind, family):
    hf = hugging_face(family)
    if kind == "nnsight":
        return as_nnsight(hf, tokenizer())
    if kind == "huggingface":
        return copy.deepcopy(hf)
    if kind == "hooked":
        return as_hooked(hf, tokenizer())
    return as_bridge(hf, tokenizer(), compatible=kind.startswith("compatible"))


@torch.no_grad()
def logits(model):
    out = (model._module if hasattr(model, "_module") else model)(IDS)
    return getattr(out, "logits", out)[0].clone()


@torch.no_grad()
def hooked(family, basis, T):
    """Logits of the Hugging Face model with (I − T·QQᵀ) after its embeddings and after every attention and MLP."""
    hf = copy.deepcopy(hugging_face(family))
    taken_out = projector(basis)

    def after(module, args, out):
        value = out[0] if isinstance(out, tuple) else out
        value = value - T * value @ taken_out
        return (value, *out[1:]) if isinstance(out, tuple) else value

    if family == "llama":
        parts = [hf.model.embed_tokens, *(part for block in hf.model.layers for part in (block.self_attn, block.mlp))]
    else:
        parts = [hf.transformer.wte, hf.transformer.wpe]
        parts += [part for block in hf.transformer.h for part in (block.attn, block.mlp)]
    for part in parts:
        part.register_forward_hook(after)
    return hf(IDS).logits[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_weights_give_the_logits_of_hooks_and_are_put_back_to_the_bit(kind, family):
    model = wrapped(kind, family)
    root = model._module if kind == "nnsight" else model
    before, weights = logits(model), [p.clone() for p in root.parameters()]
    rows = activations(2, d_model=32, dtype=torch.float32)
    if kind.startswith("compatible"):  # centred weights: their stream is that of others, up to a constant
        rows = rows - rows.mean(1, keepdim=True)
    method = ot.Ablation(rows)
    if any(getattr(part, "_processed_W_out", None) is not None for part in root.modules()):
        with pytest.raises(ValueError, match=r"keeps .* of its norm"):  # TransformerLens 3.9 computes with copies here
            method.fold(model)
        return
    for T in (1.0, 0.4):
        undo = method.fold(model, T)
        folded = logits(model)
        assert (folded - before).abs().max() > 0.1
        if not (kind.startswith("compatible") and T < 1):
            expected = hooked(family, rows, T)
            gap = (folded - expected) - (folded - expected).mean(-1, keepdim=True) * kind.startswith("compatible")
            assert gap.abs().max() <= 1e-4
        if kind not in ("nnsight", "huggingface"):  # which have no such sites
            with ot.steering(model, method.everywhere(3), T=T, positions="all"):
                undone = logits(model)  # what is gone cannot be taken out again
            assert T < 1 or (undone - folded).abs().max() <= 1e-4
        undo()
        assert torch.equal(logits(model), before)
        assert all(torch.equal(*pair) for pair in zip(root.parameters(), weights, strict=True))
        with pytest.raises(RuntimeError, match="undone already"):
            undo()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hooks_everywhere_are_the_folded_weights(family):
    model = wrapped(KINDS[0], family)
    method = ot.Ablation(activations(d_model=32, dtype=torch.float32))
    expected = hooked(family, method.directions, 0.7)
    with ot.steering(model, method.everywhere(3), T=0.7, positions="all"):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    with ot.steering(model, method.everywhere(3, ("resid_mid", "resid_post")), T=1.0, positions="all"):
        torch.testing.assert_close(logits(model), hooked(family, method.directions, 1.0), rtol=0, atol=1e-4)


def test_a_tied_unembedding_keeps_its_numbers_and_is_tied_again():
    hf = copy.deepcopy(hugging_face("llama"))
    hf.lm_head.weight, hf.config.tie_word_embeddings = hf.model.embed_tokens.weight, True
    model, method = as_nnsight(hf, tokenizer()), ot.Ablation(activations(d_model=32, dtype=torch.float32))
    root = model._module
    before = root.lm_head.weight.clone()
    undo = method.fold(model)
    assert torch.equal(root.lm_head.weight, before) and not torch.equal(root.model.embed_tokens.weight, before)
    assert root.config.tie_word_embeddings is False
    undo()
    assert root.lm_head.weight is root.model.embed_tokens.weight and root.config.tie_word_embeddings is True


def test_folds_lie_above_each_other():
    model = wrapped("nnsight", "llama")
    before = logits(model)
    one, two = (ot.Ablation(row) for row in activations(2, d_model=32, dtype=torch.float32))
    first = one.fold(model)
    second = two.fold(model)
    with pytest.raises(RuntimeError, match="undo later folds first"):
        first()
    second()
    first()
    assert torch.equal(logits(model), before)


def test_folded_weights_can_be_trained_wherever_they_were_folded():
    model, method = wrapped("huggingface", "llama"), ot.Ablation(activations(2, d_model=32, dtype=torch.float32))
    with torch.inference_mode():
        undo = method.fold(model)
    model(IDS, labels=IDS).loss.backward()
    assert model.model.embed_tokens.weight.grad is not None
    model.load_state_dict(model.state_dict())  # which writes into them
    with torch.inference_mode():
        undo()


@pytest.mark.parametrize("change", ["resized", "replaced"])
def test_nothing_is_undone_where_a_part_of_the_model_was_replaced(change):
    """Half of the weights put back would be neither model."""
    model, method = wrapped("huggingface", "gpt2"), ot.Ablation(activations(d_model=32, dtype=torch.float32))
    undo = method.fold(model)
    if change == "resized":
        model.resize_token_embeddings(30)
    else:
        model.transformer.wte = copy.deepcopy(model.transformer.wte)
    folded = logits(model)
    with pytest.raises(RuntimeError, match="replaced or resized"):
        undo()
    assert torch.equal(logits(model), folded)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("compatible")])
def test_weights_are_not_folded_inside_a_steering_block(kind):
    """What it adds to the stream would be found there, and laid at the weights' door."""
    model, method = wrapped(kind, "llama"), ot.Ablation(activations(d_model=32, dtype=torch.float32))
    before = logits(model)
    with ot.steering(model, ot.CAA.fit(oracle.activations("llama")), T=1.0, positions="all") as report:
        logits(model)
        seen = dict(report.tokens_steered)
        with pytest.raises(ValueError, match="fold before the block begins"):
            method.fold(model)
    assert report.tokens_steered == seen and torch.equal(logits(model), before)
    method.fold(model)()


@pytest.mark.parametrize("change", ["weight_norm", "l1_unstructured", "of the embedding"])
def test_weights_that_are_computed_of_others_are_refused_before_anything_is_replaced(change):
    model, method = wrapped("huggingface", "llama"), ot.Ablation(activations(d_model=32, dtype=torch.float32))
    layer = model.model.layers[2].mlp.down_proj
    if change == "weight_norm":
        parametrizations.weight_norm(layer)
    elif change == "l1_unstructured":
        prune.l1_unstructured(layer, "weight", 0.3)
    else:
        parametrize.register_parametrization(model.model.embed_tokens, "weight", torch.nn.Tanh())
    before, weights = logits(model), [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"is computed from others .*remove_parametrizations"):
        method.fold(model)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), weights, strict=True))


def test_what_cannot_be_folded_is_left_as_it_was_and_named():
    method = ot.Ablation(activations(d_model=32, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"Weights are folded in a HookedTransformer.*got Linear: pass ot.load_model"):
        method.fold(torch.nn.Linear(2, 2))
    adapted = copy.deepcopy(hugging_face("llama"))
    adapted.peft_config = {"default": None}
    with pytest.raises(ValueError, match=r"fold model\.merge_and_unload\(\) instead"):
        method.fold(adapted)
    with pytest.raises(ValueError, match=r"from 0 to 1, .*; got T=1\.5"):
        method.fold(wrapped("nnsight", "llama"), T=1.5)
    with pytest.raises(ValueError, match=r"have 24 numbers, but the weight \(24, 32\) of a Embedding writes 32"):
        instance("ablation").fold(wrapped("nnsight", "llama"))
    behind = wrapped("nnsight", "llama")
    root = behind._module
    for block in root.model.layers:  # a norm behind the matrix, as in Gemma-2
        norm = copy.deepcopy(block.input_layernorm)
        block.mlp.register_forward_hook(lambda module, args, out, norm=norm: norm(out))
    weights = [p.clone() for p in root.parameters()]
    with pytest.raises(ValueError, match=r"LlamaForCausalLM keeps .* of its norm along the directions.*everywhere"):
        method.fold(behind)
    assert all(torch.equal(*pair) for pair in zip(root.parameters(), weights, strict=True))
    quantised = wrapped("nnsight", "llama")
    block = quantised._module.model.layers[1]
    block.mlp.down_proj.weight = torch.nn.Parameter(block.mlp.down_proj.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight \(32, 48\) of a Linear is quantised \(torch.int8\): load"):
        method.fold(quantised)
    block.mlp.down_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match="block 1 of this LlamaForCausalLM has 1 of them"):
        method.fold(quantised)
    lone = wrapped("nnsight", "gpt2")
    lone._module.transformer.h[1].mlp.c_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match="block 1 of this GPT2LMHeadModel has 1 of them"):  # its bias is no matrix
        method.fold(lone)
    meta = as_nnsight(hugging_face("llama"), tokenizer())
    meta._module.to("meta")
    with pytest.raises(ValueError, match=r"is not loaded: load the weights .*model.dispatch\(\)"):
        method.fold(meta)
    centred = as_bridge(hugging_face("gpt2"), tokenizer(), compatible=True)
    with pytest.raises(ValueError, match="fitted on raw weights, but these are centred"):
        ot.Ablation(method.directions, origin=oracle.activations("gpt2").origin).fold(centred)
