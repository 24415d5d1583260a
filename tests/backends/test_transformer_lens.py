"""What a steering block reaches: every way to run a model, each against the oracle."""

import pytest
import torch
from models import KINDS, hugging_face, load
from oracle import LAYER, STEPS, TOLERANCE, Across, Stub, T, chunks, generate, logits, padded, steered_positions

import odesteer_tl as ot
from odesteer_tl.portable.sites import Site

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
    """A model, which must have the same logits after the test, bit for bit."""
    before = shared(TOKENS)
    yield shared
    assert torch.equal(shared(TOKENS), before)


ACROSS = [(Site(0), Site(2)), (Site(1, "resid_pre"), Site(1)), (Site(1, "z"), Site(1, "z"))]


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


@pytest.mark.parametrize("rule", ["decoding", "all"])
def test_each_row_may_have_its_own_strength(loaded, rule):
    _, family, model = loaded
    rows, strengths = torch.tensor([PROMPT, [1, 8, 4, 9]]), torch.tensor([3.0, -1.0])
    with ot.steering(model, METHOD, strengths, positions=rule):
        found = model(rows)
    for mine, row, strength in zip(found, rows.tolist(), strengths.tolist(), strict=True):
        expected = logits(hugging_face(family), row, steered_positions(rule, 4, 4), METHOD, strength)
        torch.testing.assert_close(mine, expected, rtol=0, atol=TOLERANCE)


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


def test_a_prompt_in_chunks_is_steered_as_one(loaded):
    kind, family, model = loaded
    pieces = TOKENS[:, :1], TOKENS[:, 1:]
    with pytest.raises(ValueError, match="prompt_lengths"):
        with ot.steering(model, METHOD, T):
            list(chunks(model, kind, pieces))
    for rule in ("decoding", "prompt", "all"):
        with ot.steering(model, METHOD, T, positions=rule, prompt_lengths=4) as report:
            found = torch.cat(list(chunks(model, kind, pieces)))
        where = steered_positions(rule, 4, 4)
        expected = logits(hugging_face(family), PROMPT, where, METHOD, T)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        assert report.tokens_steered == {LAYER: len(where)}


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
def test_prompts_may_come_as_embeddings(model, cache):
    """On rotary models: HookedTransformer itself misplaces learned positions when it generates so with the cache."""
    bridged = hasattr(model, "original_model")
    embed = model.original_model.get_input_embeddings() if bridged else model.embed
    with ot.steering(model, METHOD, T) as expected:
        tokens = model.generate(TOKENS, use_past_kv_cache=cache, return_type="tokens", **GREEDY)
    with ot.steering(model, METHOD, T) as report:
        found = model.generate(embed(TOKENS).detach(), use_past_kv_cache=cache, return_type="tokens", **GREEDY)
    assert torch.equal(found, tokens[:, 4:])
    assert report.tokens_steered == expected.tokens_steered == {LAYER: STEPS}


def test_a_pass_that_stops_early_is_over(model):
    low, high = Stub(32, layer=0), Stub(32, layer=2)
    with ot.steering(model, [(low, 1.0), (high, 1.0)]) as report:
        for tokens in (TOKENS, TOKENS + 1):
            model(tokens, stop_at_layer=1)
        model(TOKENS)
    assert report.tokens_steered == {0: 3, 2: 1}


@pytest.mark.parametrize("start", [0, 1, 2, -1])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_pass_that_begins_at_a_layer_steers_what_comes_from_there_on(model, layer, start):
    """A bridge runs the layers below too, and discards what they give: nothing there is steered, or said to be. Bridges
    of TransformerLens 3.9 begin at no layer, and refuse it in a steering block as outside."""
    first, stub = start % 3, Stub(32, layer=layer)
    _, cache = model.run_with_cache(TOKENS)
    residual = cache[f"blocks.{first}.hook_resid_pre"]
    try:
        plain = model(residual, start_at_layer=start)
    except NotImplementedError:
        with ot.steering(model, stub, T, positions="all") as report:
            with pytest.raises(NotImplementedError):
                model(residual, start_at_layer=start)
            model(TOKENS)
        assert report.tokens_steered == {layer: TOKENS.numel()}
        return
    by_hand = (f"blocks.{layer}.hook_resid_post", lambda value, hook: value + T * stub.push(value))
    expected = model.run_with_hooks(residual, start_at_layer=start, fwd_hooks=[by_hand])
    if layer >= first:
        with ot.steering(model, stub, T, positions="all") as report:
            found = model(residual, start_at_layer=start)
        assert report.tokens_steered == {layer: 4}
        assert torch.equal(found, expected) and (found - plain).abs().max() > 0.1
    else:
        assert torch.equal(expected, plain)
        with pytest.raises(ValueError, match=r"start_at_layer|No token was steered"):
            with ot.steering(model, stub, T, positions="all") as report:
                model(residual, None, start_at_layer=start)
        assert report.tokens_steered == {layer: 0}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_hf_generate_and_its_beams_are_steered_at_every_step(family, use_cache):
    """The score of a beam is the mean log-probability of its tokens: the oracle gives the same for the same tokens."""
    model, prompts = load("bridge", family), [PROMPT, [1, 8]]
    tokens, mask = padded(prompts, 0)
    with ot.steering(model, METHOD, T):
        out = model.hf_generate(
            tokens, attention_mask=mask, max_new_tokens=STEPS, num_beams=4, num_return_sequences=4, do_sample=False,
            stop_at_eos=False, use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    beams = out.sequences[:, tokens.shape[1] :].tolist()
    assert len({tuple(beam) for beam in beams[:4]}) == 4
    for i, (beam, found) in enumerate(zip(beams, out.sequences_scores, strict=True)):
        row, n = prompts[i // 4] + beam[:-1], len(prompts[i // 4])
        steered = logits(hugging_face(family), row, steered_positions("decoding", n, len(row)), METHOD, T)[n - 1 :]
        score = steered.log_softmax(-1).gather(1, torch.tensor(beam).unsqueeze(1)).mean()
        torch.testing.assert_close(found, score, rtol=0, atol=TOLERANCE)


def test_several_methods_at_one_site_act_in_their_order(model):
    first, second = Stub(32, seed=1), Stub(32, seed=2)
    _, clean = model.run_with_cache(TOKENS, names_filter=NAME)
    a = clean[NAME][0, 3]
    a = a + 2.0 * first.push(a)
    a = a + 3.0 * second.push(a)
    with ot.steering(model, [(first, 2.0), (second, 3.0)]):
        _, cache = model.run_with_cache(TOKENS, names_filter=NAME)
    torch.testing.assert_close(cache[NAME][0, 3], a)


@pytest.mark.parametrize("read, write", ACROSS)
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
