"""The life of a steering block: what it leaves behind, what it says, and what it refuses."""

import gc

import pytest
import torch
from models import KINDS, hugging_face, load
from oracle import LAYER, TOLERANCE, Across, Stub, T, logits

import odesteer_tl as ot
from odesteer_tl.portable.sites import Site

NAME = f"blocks.{LAYER}.hook_resid_post"
PROMPT = [1, 5, 6, 7]
TOKENS = torch.tensor([PROMPT])
METHOD = Stub(32)


@pytest.fixture(scope="module", params=KINDS)
def shared(request):
    return load(request.param, "llama")


@pytest.fixture
def model(shared):
    """A model, which must have the logits, bit for bit, and the hooks after the test that it had before."""
    before, hooks = shared(TOKENS), hooks_of(shared)
    yield shared
    assert torch.equal(shared(TOKENS), before)
    assert hooks_of(shared) == hooks


def hooks_of(model):
    """Whatever hangs on the model, seen by torch and by TransformerLens."""
    by_torch = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    original = getattr(model, "original_model", model)
    return by_torch, len(original._forward_pre_hooks), [len(point.fwd_hooks) for point in model.hook_dict.values()]


def effect(model, tokens=TOKENS):
    return model(tokens).detach()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StopIteration, ValueError])
def test_an_error_in_the_block_comes_out_as_it_is_and_leaves_nothing(model, error):
    with pytest.raises(error, match="mine"):
        with ot.steering(model, METHOD, T):
            effect(model)
            raise error("mine")
    with pytest.raises(error, match="mine"):  # also where nothing was steered
        with ot.steering(model, METHOD, T):
            raise error("mine")


def test_an_error_inside_the_model_leaves_nothing(model):
    def fails(value, hook):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        with ot.steering(model, METHOD, T):
            model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.2.hook_resid_post", fails)])


def test_leaving_early_leaves_nothing(model):
    plain = effect(model)

    def steps():
        with ot.steering(model, METHOD, T):
            while True:
                yield effect(model)

    running = steps()
    assert not torch.equal(next(running), plain)
    running.close()
    assert torch.equal(effect(model), plain)
    abandoned = steps()
    next(abandoned)
    del abandoned
    gc.collect()
    assert torch.equal(effect(model), plain)
    for _ in range(2):
        with ot.steering(model, METHOD, T):
            effect(model)
            break
    assert torch.equal(effect(model), plain)


def test_the_users_hooks_survive(model):
    calls = []
    model.add_hook(NAME, lambda value, hook: calls.append("temporary"))
    model.add_perma_hook(NAME, lambda value, hook: calls.append("permanent"))
    with ot.steering(model, METHOD, T):
        effect(model)
    effect(model)
    assert calls == ["temporary", "permanent"] * 2
    model.reset_hooks(including_permanent=True)


def test_what_others_hold_is_not_written_into(model):
    held = []
    model.add_hook(NAME, lambda value, hook: held.append(value))
    with torch.no_grad():
        effect(model)
        with ot.steering(model, METHOD, T):
            effect(model)
    model.reset_hooks()
    assert torch.equal(*held)


def test_blocks_nest(model):
    other = Stub(32, layer=0, seed=1)
    hf = hugging_face("llama")
    with ot.steering(model, [(other, 1.0), (METHOD, T)]) as report:
        both = effect(model)
    assert report.tokens_steered == {0: 1, LAYER: 1}
    with ot.steering(model, METHOD, T), ot.steering(model, other, 1.0):
        assert torch.equal(effect(model), both)
    with ot.steering(model, METHOD, T):
        with ot.steering(model, other, 1.0):
            pass_through = effect(model)
        torch.testing.assert_close(effect(model)[0], logits(hf, PROMPT, [3], METHOD, T), rtol=0, atol=TOLERANCE)
    assert torch.equal(pass_through, both)


def test_reading_after_writing_is_refused(model):
    with pytest.raises(ValueError, match=r"reads blocks.2.hook_resid_post after it writes blocks.1"):
        with ot.steering(model, Across(Site(2), Site(1)), 1.0):
            pass


def test_reset_hooks_in_the_block_is_reported(model):
    with pytest.warns(UserWarning, match="reset_hooks"):
        with ot.steering(model, METHOD, T) as report:
            effect(model)
            model.reset_hooks()
            effect(model)
    assert report.hooks_removed and report.tokens_steered == {LAYER: 1}
    with pytest.warns(UserWarning, match="reset_hooks"), pytest.raises(ValueError, match="reset_hooks"):
        with ot.steering(model, METHOD, T):
            model.reset_hooks()


def test_a_block_that_steers_nothing_is_an_error(model):
    with pytest.raises(ValueError, match="No token was steered"):
        with ot.steering(model, METHOD, T):
            pass
    with pytest.raises(ValueError, match="No token was steered"):
        with ot.steering(model, METHOD, T, positions="generated"):
            effect(model)


def test_parts_of_the_model_cannot_be_steered_by_position(model):
    with pytest.raises(ValueError, match="outside a forward pass"):
        with ot.steering(model, METHOD, T):
            model.hook_dict[NAME](torch.zeros(1, 4, 32))


def test_misfits_are_refused_by_name(model):
    for method, says in [
        (Stub(16), "d_model 16, this model has 32"),
        (Stub(32, layer=3), "layers 0 to 2"),
        (Stub(32, processing="centred"), "fitted on centred weights and this model has raw"),
    ]:
        with pytest.raises(ValueError, match=says):
            with ot.steering(model, method, T):
                pass
        with pytest.raises(ValueError, match=says):
            ot.generate(model, TOKENS, method, T)
    with pytest.raises(ValueError, match="layers 0 to 2"):
        with ot.steering(model, METHOD, T, layer=7):
            pass
    with pytest.raises(ValueError, match="carries its strengths"):
        with ot.steering(model, [(METHOD, T)], T):
            pass
    with pytest.raises(ValueError, match="HookedTransformer or a TransformerBridge"):
        with ot.steering(torch.nn.Linear(2, 2), METHOD, T):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_that_a_model_lacks_is_refused(kind, monkeypatch):
    model = load(kind, "llama")
    missing = Site(1, "attn_out")
    hooks = {name: point for name, point in model.hook_dict.items() if name != missing.hook_name}
    monkeypatch.setattr(type(model), "hook_dict", hooks, raising=False)
    if kind == "hooked":
        monkeypatch.setattr(model, "hook_dict", hooks)
    with pytest.raises(ValueError, match=r"no hook blocks\.1\.hook_attn_out"):
        with ot.steering(model, Across(missing, Site(1)), T):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_weight_processing_must_match_where_it_is_known(kind):
    model = load(kind, "gpt2", compatible=True)
    with pytest.raises(ValueError, match="fitted on raw weights and this model has centred"):
        with ot.steering(model, Stub(32, processing="raw"), T):
            pass
    for processing in ("centred", "unknown"):
        with ot.steering(model, Stub(32, processing=processing), T) as report:
            effect(model)
        assert report.tokens_steered == {LAYER: 1}


@pytest.mark.parametrize("kind", KINDS)
def test_small_steps_in_sixteen_bits_are_warned_of(kind, recwarn):
    model = load(kind, "llama", dtype=torch.bfloat16)
    method = Stub(32, typical_norm=100.0)
    with pytest.warns(UserWarning, match="bfloat16"):
        with ot.steering(model, method, 1.0):
            effect(model)
    with pytest.warns(UserWarning, match="bfloat16"):
        with ot.steering(model, method, relative_T=torch.tensor([0.01])):
            effect(model)
    recwarn.clear()
    with ot.steering(model, method, 3.0), ot.steering(model, Stub(32), 1.0):
        assert effect(model).dtype == torch.bfloat16
    assert not [w for w in recwarn if "bfloat16" in str(w.message)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fit_on_raw_layer_norm_weights_is_refused_on_centred_ones_and_the_reverse(kind, dtype):
    raw, centred = load(kind, "gpt2", dtype=dtype), load(kind, "gpt2", dtype=dtype, compatible=True)
    name = f"blocks.{LAYER}.hook_resid_post"
    for own, other, seen in ((raw, centred, "raw"), (centred, raw, "centred")):
        caches = [own.run_with_cache(TOKENS + shift, names_filter=name)[1] for shift in (0, 1)]
        by_cache = ot.ContrastiveActivations.from_caches(*caches, layer=LAYER, position=-1)
        by_collect = ot.collect(own, TOKENS, TOKENS + 1, LAYER)
        assert by_cache.processing == seen
        for acts in (by_cache, by_collect):
            method = ot.CAA.fit(acts)
            with pytest.raises(ValueError, match="so the residual streams differ"):
                ot.generate(other, TOKENS, method, 1.0, max_new_tokens=2)
            ot.generate(own, TOKENS, method, 1.0, max_new_tokens=2)


def test_a_strength_per_row_is_never_spread_over_other_rows():
    model = load("bridge", "llama")
    tokens = TOKENS[:1].expand(4, -1)
    with pytest.raises(ValueError, match=f"T holds 2 values, the model sees {len(tokens)} rows"):
        with ot.steering(model, METHOD, torch.tensor([0.0, 5.0])):
            model(tokens)
    for wrong in ([(METHOD,)], [METHOD, METHOD], (METHOD, 1.0)):
        with pytest.raises(ValueError, match="A list of methods"):
            with ot.steering(model, wrong):
                model(tokens)
