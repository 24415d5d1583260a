"""The life of a steering block: what it reaches, what it leaves behind, and what it refuses."""

import gc

import pytest
import torch
from models import KINDS, hugging_face, load
from oracle import LAYER, STEPS, TOLERANCE, Stub, T, block, generate, logits, steered_positions

import odesteer_tl as ot
from odesteer_tl.edits import Edit, Site

NAME = f"blocks.{LAYER}.hook_resid_post"
PROMPT = [1, 5, 6, 7]
TOKENS = torch.tensor([PROMPT])
METHOD = Stub(32)
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "stop_at_eos": False, "verbose": False}


@pytest.fixture(scope="module", params=[(kind, family) for kind in KINDS for family in ("llama", "gpt2")], ids="-".join)
def loaded(request):
    return (*request.param, load(*request.param))


@pytest.fixture(scope="module", params=KINDS)
def shared(request):
    return load(request.param, "llama")


@pytest.fixture
def model(shared):
    """A model that the test may spoil; whatever it does, the block must leave the logits bit for bit as they were."""
    before = shared(TOKENS)
    yield shared
    shared.reset_hooks()
    assert torch.equal(shared(TOKENS), before)


class Across:
    """Reads one site and writes another: adds a map of what it read."""

    def __init__(self, read: Site, write: Site):
        self.origin = Stub(32).origin
        self.read, self.write = read, write

    def edits(self, T=None, *, relative_T=None, layer=None):
        return [Edit(self.read, self.write, lambda read, write, state: write + T * METHOD.push(read))]


def effect(model, tokens=TOKENS):
    return model(tokens).detach()


def test_forward_cache_and_hooks_see_steered_values(model):
    plain = effect(model)
    expected = logits(hugging_face("llama"), PROMPT, [3], METHOD, T)
    _, clean = model.run_with_cache(TOKENS, names_filter=NAME)
    seen = []
    with ot.steering(model, METHOD, T):
        torch.testing.assert_close(effect(model)[0], expected, rtol=0, atol=TOLERANCE)
        _, cache = model.run_with_cache(TOKENS, names_filter=NAME)
        hooks = [(NAME, lambda value, hook: seen.append(value.clone()))]
        torch.testing.assert_close(model.run_with_hooks(TOKENS, fwd_hooks=hooks)[0], expected, rtol=0, atol=TOLERANCE)
    steered = clean[NAME].clone()
    steered[0, 3] += T * METHOD.push(steered[0, 3])
    torch.testing.assert_close(cache[NAME], steered)
    torch.testing.assert_close(seen[0], steered)
    assert (expected - plain[0]).abs().max() > 0.1


def test_two_generations_in_one_block_are_two_prompts(loaded):
    kind, _, model = loaded
    prompts = [[PROMPT], [[1, 8]], [PROMPT]]
    alone = []
    for rows in prompts:
        with ot.steering(model, METHOD, T):
            alone.append(generate(model, kind, rows)[1])
    for cache in (True, False):
        with ot.steering(model, METHOD, T) as report:
            for rows, expected in zip(prompts, alone, strict=True):
                torch.testing.assert_close(generate(model, kind, rows, cache)[1], expected, rtol=0, atol=TOLERANCE)
        assert report.tokens_steered == {LAYER: 3 * STEPS}


def test_prompt_lengths_make_one_forward_what_generation_was(loaded):
    kind, _, model = loaded
    with ot.steering(model, METHOD, T):
        new, expected = generate(model, kind, [PROMPT])
    whole = torch.cat([TOKENS, new[:, :-1]], dim=1)
    with ot.steering(model, METHOD, T, prompt_lengths=4):
        torch.testing.assert_close(model(whole)[:, 3:], expected, rtol=0, atol=TOLERANCE)
    with ot.steering(model, METHOD, T):  # not told, it takes all for the prompt
        assert (model(whole)[:, 3:] - expected).abs().max() > 0.1
    with ot.steering(model, METHOD, T, prompt_lengths=4):  # and may be continued with the cache off
        again = generate(model, kind, [whole[0].tolist()], False)[1][:, 0]
    with ot.steering(model, METHOD, T):
        sixth = generate(model, kind, [PROMPT], False)[1][:, -1]
    torch.testing.assert_close(again, sixth, rtol=0, atol=TOLERANCE)


def test_right_padded_rows_are_steered_at_their_last_real_token_where_a_mask_says_so(loaded):
    _, family, model = loaded
    tokens, mask = torch.tensor([PROMPT, [1, 8, 0, 0]]), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    with ot.steering(model, METHOD, T) as report:
        found = model(tokens, attention_mask=mask)
    assert report.tokens_steered == {LAYER: 2}
    for row, n, mine in zip(tokens.tolist(), (4, 2), found, strict=True):
        expected = logits(hugging_face(family), row[:n], [n - 1], METHOD, T)
        torch.testing.assert_close(mine[:n], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_hf_generate_and_its_beams_are_steered_at_every_step(family, use_cache):
    """The score of a beam is the mean log-probability of its tokens: the oracle gives the same for the same tokens."""
    model, hf = load("bridge", family), hugging_face(family)
    different = 0
    for prompt in ([1, 5, 6, 7], [1, 8], [1, 12, 9], [1, 17]):
        with ot.steering(model, METHOD, T):
            out = model.hf_generate(
                torch.tensor([prompt]), max_new_tokens=STEPS, num_beams=4, do_sample=False, stop_at_eos=False,
                use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            greedy = model.hf_generate(torch.tensor([prompt]), **{k: v for k, v in GREEDY.items() if k != "verbose"})
        row = out.sequences[0].tolist()
        n = len(prompt)
        steered = logits(hf, row[:-1], steered_positions("decoding", n, len(row) - 1), METHOD, T)[n - 1 :]
        score = steered.log_softmax(-1).gather(1, torch.tensor(row[n:]).unsqueeze(1)).mean()
        torch.testing.assert_close(out.sequences_scores[0], score, rtol=0, atol=TOLERANCE)
        different += row != greedy[0].tolist()
    assert different  # beams have found what greedy decoding does not


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


def test_several_methods_at_one_site_act_in_their_order(model):
    first, second = Stub(32, seed=1), Stub(32, seed=2)
    _, clean = model.run_with_cache(TOKENS, names_filter=NAME)
    a = clean[NAME][0, 3]
    a = a + 2.0 * first.push(a)
    a = a + 3.0 * second.push(a)
    with ot.steering(model, [(first, 2.0), (second, 3.0)]):
        _, cache = model.run_with_cache(TOKENS, names_filter=NAME)
    torch.testing.assert_close(cache[NAME][0, 3], a)


@pytest.mark.parametrize("read, write", [(Site(0), Site(2)), (Site(1, "resid_pre"), Site(1)), (Site(1, "z"), Site(1, "z"))])
def test_an_edit_may_read_one_site_and_write_another(model, read, write):
    names = [read.hook_name, write.hook_name]
    _, clean = model.run_with_cache(TOKENS, names_filter=lambda name: name in names)
    values = [clean[name].flatten(2)[0, 3] for name in names]
    with ot.steering(model, Across(read, write), 2.0) as report:
        _, cache = model.run_with_cache(TOKENS, names_filter=names[1])
    found = cache[names[1]]
    torch.testing.assert_close(found.flatten(2)[0, 3], values[1] + 2.0 * METHOD.push(values[0]))
    assert found.shape == clean[names[1]].shape and torch.equal(found[0, :3], clean[names[1]][0, :3])
    assert report.tokens_steered == {write.layer: 1}


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


@pytest.mark.parametrize("kind", KINDS)
def test_texts_padded_on_the_right_are_refused_and_on_the_left_steered(kind):
    model = load(kind, "llama")
    with pytest.raises(ValueError, match='padding_side="left"'):
        with ot.steering(model, METHOD, T):
            model(["the film is", "good"])
    with ot.steering(model, METHOD, T) as report:
        found = model(["the film is", "good"], padding_side="left")
    assert report.tokens_steered == {LAYER: 2}
    expected = logits(hugging_face("llama"), [1, 10], [1], METHOD, T)
    torch.testing.assert_close(found[1, -2:], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_for_bos_eos_and_pad_is_told_apart(kind):
    model, hf = load(kind, "llama", bos_is_pad=True), hugging_face("llama")
    bos = model.tokenizer.bos_token_id
    assert bos == model.tokenizer.pad_token_id
    for side in ({}, {"padding_side": "left"}):
        with ot.steering(model, METHOD, T, positions="all") as report:
            model.generate(["the film is", "good"], **GREEDY, **side)
        assert report.tokens_steered == {LAYER: 4 + 2 + 2 * (STEPS - 1)}
    out = ot.generate(model, ["the film is", "good"], METHOD, T, max_new_tokens=1)
    assert out.prompt_lengths.tolist() == [4, 2]
    last = logits(hf, [bos, model.to_single_token("good")], [1], METHOD, T)[-1]
    assert out.tokens[1, -1] == last.argmax()


def test_misfits_are_refused_by_name(model):
    for method, says in [
        (Stub(16), "d_model 16, this model has 32"),
        (Stub(32, layer=3), "layers 0 to 2"),
        (Stub(32, processing="centred"), "fitted on centred weights, this model has raw"),
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
    with pytest.raises(TypeError, match="HookedTransformer or a TransformerBridge"):
        with ot.steering(hugging_face("llama"), METHOD, T):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_that_a_model_lacks_is_refused(kind, monkeypatch):
    model = load(kind, "llama")
    missing = Site(1, "attn_out")
    hooks = {name: point for name, point in model.hook_dict.items() if name != missing.hook_name}
    monkeypatch.setattr(type(model), "hook_dict", hooks, raising=False)
    if kind == "hooked":
        monkeypatch.setattr(model, "hook_dict", hooks)
    with pytest.raises(ValueError, match="no hook blocks.1.hook_attn_out"):
        with ot.steering(model, Across(missing, Site(1)), T):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_weight_processing_must_match_where_it_is_known(kind):
    model = load(kind, "gpt2", compatible=True)
    with pytest.raises(ValueError, match="fitted on raw weights, this model has centred"):
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


def test_a_wrong_layer_would_show():
    """Layers count from 0 and the hook name is the block's output: the same layer as the Hugging Face block."""
    assert block(hugging_face("llama"), LAYER) is hugging_face("llama").model.layers[1]
    at_one = logits(hugging_face("llama"), PROMPT, [3], METHOD, T)
    at_two = logits(hugging_face("llama"), PROMPT, [3], Stub(32, layer=2), T)
    assert (at_one - at_two).abs().max() > 0.1
