"""nnsight: reading, steering blocks, interventions in the user's own graph, and generation, on this machine."""

import copy
import warnings

import nnsight
import pytest
import torch
from models import FAMILIES, KINDS, hugging_face, load, width
from oracle import LAYER, PROMPTS, STEPS, TOLERANCE, Across, Stub, T, deviations, logits, padded, steered_positions

import odesteer_tl as ot
from odesteer_tl.backends import token_losses
from odesteer_tl.parity.models import saved
from odesteer_tl.parity.oracle import activations

ROWS = PROMPTS["batch"]
PROMPT = [1, 5, 6, 7]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def shared(family):
    return load("nnsight", family)


@pytest.fixture
def model(shared):
    """The shared model, which every test has to leave as it was."""
    before = logits_of(shared)
    yield shared
    assert shared._edits == []
    assert torch.equal(logits_of(shared), before)


def layer(model, index=LAYER):
    return (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[index]


def inputs(rows):
    tokens, mask = padded(rows, 0)
    return {"input_ids": tokens, "attention_mask": mask}


def logits_of(model):
    """By a trace: called as a module, an nnsight model runs without its edits."""
    with model.trace(torch.tensor([PROMPT])):
        found = nnsight.save(model.lm_head.output)
    return found


def steps_of(model, rows, cache=True, steer=lambda: None, steps=STEPS):
    """Generated tokens and the logits of each step, from a graph of the user's own in which `steer` is called."""
    options = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
    with model.generate(inputs(rows), use_cache=cache, **options) as tracer:
        found = nnsight.save([])
        for _ in tracer.iter[:steps]:
            steer()
            found.append(model.lm_head.output[:, -1])
        out = nnsight.save(tracer.result)
    return out[:, -steps:], torch.stack(found, dim=1)


# Reading


@pytest.mark.parametrize("position", ["last", "mean", "all", 0, -1])
def test_collect_reads_what_transformer_lens_reads(model, family, position):
    desired, undesired = (ot.Tokenised(*padded(rows, 0)) for rows in (ROWS, [[1, 9, 9], [4]]))
    here = ot.collect(model, desired, undesired, layer=LAYER, position=position, batch_size=2)
    for kind in KINDS:
        there = ot.collect(load(kind, family), desired, undesired, layer=LAYER, position=position)
        for side in ("desired", "undesired"):
            assert torch.allclose(getattr(here, side), getattr(there, side), atol=1e-4)
        assert (here.layer, here.hook_name, here.processing) == (there.layer, there.hook_name, there.processing)
    assert here.desired.dtype == torch.float32 and not here.desired.requires_grad


def test_a_text_reads_the_same_in_any_batch(model):
    together = ot.collect(model, ot.Tokenised(*padded(ROWS, 0)), torch.tensor([[4]]), layer=LAYER).desired
    for row, found in zip(ROWS, together, strict=True):
        alone = ot.collect(model, torch.tensor([row]), torch.tensor([[4]]), layer=LAYER).desired[0]
        assert torch.allclose(found, alone, atol=1e-5)


def test_collect_runs_no_later_layer_and_keeps_no_graph(model):
    ran = []
    handles = [
        layer(model, index)._module.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        for index in (1, 2)
    ]
    ot.collect(model, torch.tensor([PROMPT]), torch.tensor([[4]]), layer=1)
    for handle in handles:
        handle.remove()
    assert ran == [1, 1]


def test_collect_sees_the_users_own_edits(model):
    def read():
        return ot.collect(model, torch.tensor([PROMPT]), torch.tensor([[4]]), layer=LAYER).desired

    plain = read()
    with model.edit(inplace=True):
        layer(model).output = layer(model).output + 1
    assert torch.allclose(read(), plain + 1, atol=1e-5)
    model.clear_edits()


def test_collect_refuses_what_cannot_be():
    model = load("nnsight", "llama")
    for call, said in (
        (lambda: ot.collect(model, "the film", "bad", layer=3), "layers 0 to 2"),
        (lambda: ot.collect(model, "the film", "bad", layer=1, blocks="model.nowhere"), "leads nowhere"),
        (lambda: ot.collect(model, "", "bad", layer=1), "no tokens"),
        (
            lambda: ot.collect(load("bridge", "llama"), "a", "bad", layer=1, blocks="model.layers"),
            "for nnsight and Hugging Face models",
        ),
        (lambda: ot.collect(load("bridge", "llama"), "a", "bad", layer=1, remote=True), "nnsight model"),
        (lambda: ot.collect(torch.nn.Linear(2, 2), "a", "bad", layer=1), "nnsight.NNsight"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


# A steering block


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
def test_a_trace_in_the_block_reads_steered_values_and_reports_them(model, family, cache):
    method = Stub(width(model))
    with ot.steering(model, method, T, positions="all") as report, model.trace(torch.tensor([PROMPT]), use_cache=cache):
        seen = nnsight.save(layer(model).output)
        found = nnsight.save(model.lm_head.output)
    with model.trace(torch.tensor([PROMPT])):
        plain = nnsight.save(layer(model).output)
    assert torch.allclose(seen, plain + T * method.push(plain), atol=1e-4)
    assert (found[0] - logits(hugging_face(family), PROMPT, range(4), method, T)).abs().max() <= TOLERANCE
    assert report.tokens_steered == {LAYER: len(PROMPT)}


def test_nothing_is_warned_of_and_every_call_of_the_block_is_steered(model, family):
    method = Stub(width(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ot.steering(model, method, T) as report:
            for _ in range(2):
                new, found = steps_of(model, ROWS)
                for error, _ in deviations(family, ROWS, new, found, "decoding", method, [T] * 3):
                    assert error <= TOLERANCE
    assert report.tokens_steered == {LAYER: 2 * 3 * STEPS}


def test_prompt_lengths_tell_prompt_from_continuation(model, family):
    method, lengths = Stub(width(model)), [3, 1, 2]
    with ot.steering(model, method, T, prompt_lengths=lengths), model.trace(inputs(ROWS)):
        found = nnsight.save(model.lm_head.output)
    for row, n, mine in zip(ROWS, lengths, found, strict=True):
        expected = logits(hugging_face(family), row, steered_positions("decoding", n, len(row)), method, T)
        assert (mine[-len(row) :] - expected).abs().max() <= TOLERANCE


def test_several_invokes_are_steered_as_one_batch_with_a_T_for_each(model, family):
    method, strengths = Stub(width(model)), torch.tensor([3.0, 1.0])
    with ot.steering(model, method, strengths), model.trace() as tracer:
        with tracer.invoke({"input_ids": torch.tensor([ROWS[0]])}):
            first = nnsight.save(model.lm_head.output)
        with tracer.invoke({"input_ids": torch.tensor([ROWS[2]])}):
            second = nnsight.save(model.lm_head.output)
    for row, mine, strength in ((ROWS[0], first, 3.0), (ROWS[2], second, 1.0)):
        expected = logits(hugging_face(family), row, [len(row) - 1], method, strength)
        assert (mine[0, -1] - expected[-1]).abs().max() <= TOLERANCE


def test_the_users_edits_act_in_the_order_that_is_documented(model):
    """Before the block: first; then steering; then those made inside; last the trace."""
    method, order = Stub(width(model)), []

    def noted(value, name):
        order.append((name, float(value[0, -1].sum())))
        return value

    with model.edit(inplace=True):
        layer(model).output = noted(layer(model).output + 1, "before")
    with ot.steering(model, method, T):
        with model.edit(inplace=True):
            noted(layer(model).output, "inside")
        with model.trace(torch.tensor([PROMPT])):
            seen = nnsight.save(layer(model).output)
    assert [name for name, _ in order] == ["before", "inside"]
    before, inside = (value for _, value in order)
    assert abs(before - inside) > 0.1 and abs(inside - float(seen[0, -1].sum())) < 1e-5
    assert len(model._edits) == 2  # both of the user's are still there
    model.clear_edits()


def test_blocks_nest(model, family):
    a, b = Stub(width(model)), Stub(width(model), layer=0, seed=3)
    with ot.steering(model, a, T), ot.steering(model, b, T), model.trace(torch.tensor([PROMPT])):
        nested = nnsight.save(model.lm_head.output)
    with ot.steering(model, [(b, T), (a, T)]) as report, model.trace(torch.tensor([PROMPT])):
        listed = nnsight.save(model.lm_head.output)
    assert torch.allclose(nested, listed, atol=1e-5)
    assert report.tokens_steered == {0: 1, LAYER: 1}


@pytest.mark.parametrize("read, write", [("resid_pre", "resid_post"), ("resid_pre", "resid_pre")])
def test_an_edit_reads_one_site_and_writes_another(model, read, write):
    method = Across(ot.Site(0, read), ot.Site(LAYER, write), width(model))
    block = layer(model)
    with model.trace(torch.tensor([PROMPT])):
        first = nnsight.save(layer(model, 0).input)
        plain = nnsight.save(block.output if write == "resid_post" else layer(model, 0).output)
    with ot.steering(model, method, T, positions="all"), model.trace(torch.tensor([PROMPT])):
        found = nnsight.save(block.output if write == "resid_post" else block.input)
    assert torch.allclose(found, plain + T * Stub(width(model)).push(first), atol=1e-4)


def test_a_run_that_stops_early_or_fails_leaves_nothing_behind(model):
    method = Stub(width(model))
    with ot.steering(model, method, T) as report:
        with model.trace(torch.tensor([PROMPT])) as tracer:
            layer(model, 0).output.sum()
            tracer.stop()
        with pytest.raises(Exception, match="my own"), model.trace(torch.tensor([PROMPT])):
            raise RuntimeError("my own")
        assert report.tokens_steered == {LAYER: 0}
        logits_of(model)
    assert report.tokens_steered == {LAYER: 1}
    with pytest.raises(RuntimeError, match="of the user"), ot.steering(model, method, T):
        logits_of(model)
        raise RuntimeError("of the user")


def test_an_edited_copy_is_steered_only_while_the_block_lasts(model):
    method = Stub(width(model))
    plain = logits_of(model)
    with ot.steering(model, method, T):
        with model.edit() as (_, twin):
            twin.lm_head.output = twin.lm_head.output + 0
        inside = logits_of(twin)
    assert (inside - plain).abs().max() > 0.1
    assert torch.equal(logits_of(twin), plain)


def test_however_the_model_is_called_it_is_steered(model):
    """As a module, by Hugging Face's own generate, and by a trace of a copy that was edited before the block."""
    method = Stub(width(model))

    def hooks():
        return [(*m._forward_hooks, *m._forward_pre_hooks) for m in model._module.modules()]

    before = hooks()
    with model.edit() as (_, twin):
        twin.lm_head.output = twin.lm_head.output + 0
    with ot.steering(model, method, T):
        expected = logits_of(model)
    with ot.steering(model, method, T) as report:
        assert torch.equal(model(torch.tensor([PROMPT])).logits, expected)
        assert torch.equal(logits_of(twin), expected)
        options = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
        out = model._module.generate(torch.tensor([PROMPT]), **options)
        assert torch.allclose(out.logits[0], expected[:, -1], atol=1e-5)
    assert report.tokens_steered == {LAYER: 4}
    assert hooks() == before


def test_clear_edits_inside_the_block_is_told_of(model):
    with pytest.warns(UserWarning, match="clear_edits"), ot.steering(model, Stub(width(model)), T):
        logits_of(model)
        model.clear_edits()


def test_a_block_that_steers_nothing_or_something_else_is_refused(model):
    method = Stub(width(model))
    with pytest.raises(ValueError, match="No token was steered"), ot.steering(model, method, T):
        pass
    for wrong, options, said in (
        (Stub(width(model) + 1), {}, "d_model"),
        (Stub(width(model), processing="centred"), {}, "centred"),
        (Stub(width(model), layer=17), {}, "does not exist"),
        (Across(ot.Site(1, "mlp_out"), ot.Site(1, "mlp_out")), {}, "resid_post"),
        (method, {"blocks": "lm_head"}, "no list"),
    ):
        with pytest.raises(ValueError, match=said), ot.steering(model, wrong, T, **options):
            pass


def test_a_remote_trace_in_the_block_is_refused_before_it_is_sent():
    model = ot.load_model(saved("llama"), library="nnsight")
    with pytest.raises(ValueError, match=r"ot\.intervene"), ot.steering(model, Stub(32), T):
        with model.trace(torch.tensor([PROMPT]), remote="http://127.0.0.1:9"):
            model.lm_head.output.sum()


@pytest.mark.parametrize("way", ["steering", "intervene"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.06), (torch.float16, 0.008)], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sixteen_bits(name, dtype, tolerance, way):
    """Against a torch hook on the same model in the same type: two roundings of a logit (they reach 4 here)."""
    model, method = load("nnsight", name, dtype=dtype), ot.ODESteer.fit(activations(name))
    if way == "steering":
        with ot.steering(model, method, relative_T=0.4):
            new, found = steps_of(model, ROWS)
    else:
        new, found = steps_of(model, ROWS, steer=lambda: ot.intervene(model, method, relative_T=0.4))
    hf = copy.deepcopy(hugging_face(name)).to(dtype)
    for row, generated, mine in zip(ROWS, new.tolist(), found, strict=True):
        whole, last = row + generated[:-1], len(row) - 1
        for steered in (True, False):

            def hook(module, args, output, last=last, steered=steered):
                moved = method.steer(output[0, last:], relative_T=0.4) if steered else output[0, last:]
                return torch.cat([output[:, :last], moved[None]], dim=1)

            handle = (hf.model.layers if name == "llama" else hf.transformer.h)[LAYER].register_forward_hook(hook)
            expected = hf(torch.tensor([whole]), use_cache=False).logits[0, last:]
            handle.remove()
            difference = (mine - expected).abs().max()
            assert difference <= tolerance if steered else difference >= 0.5


# In the user's own graph


@pytest.mark.parametrize("rule", ["decoding", "generated", "prompt", "all", slice(1, 3)], ids=str)
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
def test_intervening_steers_what_a_block_steers(model, family, cache, prompts, rule):
    method, rows = Stub(width(model)), PROMPTS[prompts]
    new, found = steps_of(model, rows, cache, lambda: ot.intervene(model, method, T, positions=rule))
    for error, _ in deviations(family, rows, new, found, rule, method, [T] * len(rows)):
        assert error <= TOLERANCE


def test_a_trace_steers_the_last_token_or_what_prompt_lengths_say(model, family):
    method = Stub(width(model))
    for lengths, starts in ((None, [4, 0, 2]), ([2, 1, 3], [1, 0, 2])):
        with model.trace(inputs(ROWS)):
            steered = nnsight.save(ot.intervene(model, method, T, prompt_lengths=lengths))
            found = nnsight.save(model.lm_head.output)
        for row, start, mine in zip(ROWS, starts, found, strict=True):
            expected = logits(hugging_face(family), row, range(start, len(row)), method, T)
            assert (mine[-len(row) :] - expected).abs().max() <= TOLERANCE
        assert steered == {LAYER: sum(len(row) - start for row, start in zip(ROWS, starts, strict=True))}


def test_reads_before_and_after_see_the_step_and_calls_add_up(model, rows=(PROMPT,)):
    method = Stub(width(model))
    with model.trace(inputs(rows)):
        before = nnsight.save(layer(model).output.clone())
        ot.intervene(model, method, T)
        between = nnsight.save(layer(model).output.clone())
        ot.intervene(model, method, 2 * T)
        after = nnsight.save(layer(model).output.clone())
    expected = before.clone()
    expected[:, -1] += T * method.push(before[:, -1])
    assert torch.allclose(between, expected, atol=1e-4)
    expected[:, -1] += 2 * T * method.push(expected[:, -1])
    assert torch.allclose(after, expected, atol=1e-4)


def test_a_read_before_it_hides_the_pads_which_is_an_error_where_they_matter(model):
    with pytest.raises(ValueError, match="before you read"), model.trace(inputs(ROWS)):
        layer(model).output.sum()
        ot.intervene(model, Stub(width(model)), T, positions="prompt")


def test_each_invoke_steers_its_own_rows(model, family):
    a, b = Stub(width(model)), Stub(width(model), seed=3)
    with model.trace() as tracer:
        with tracer.invoke({"input_ids": torch.tensor([ROWS[0]])}):
            ot.intervene(model, a, T)
            first = nnsight.save(model.lm_head.output)
        with tracer.invoke({"input_ids": torch.tensor([ROWS[2]])}):
            ot.intervene(model, b, T)
            second = nnsight.save(model.lm_head.output)
        with tracer.invoke({"input_ids": torch.tensor([ROWS[1]])}):
            third = nnsight.save(model.lm_head.output)
    hf = hugging_face(family)
    for row, mine, method, positions in ((ROWS[0], first, a, [4]), (ROWS[2], second, b, [2]), (ROWS[1], third, a, [])):
        assert (mine[0, -1] - logits(hf, row, positions, method, T)[-1]).abs().max() <= TOLERANCE


def test_without_a_loop_only_the_prompt_is_steered(model, family):
    method = Stub(width(model))
    options = {"max_new_tokens": 1, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
    with model.generate(inputs([PROMPT]), **options):
        ot.intervene(model, method, T)
        found = nnsight.save(model.lm_head.output[:, -1])
    assert (found[0] - logits(hugging_face(family), PROMPT, [3], method, T)[-1]).abs().max() <= TOLERANCE


def test_it_composes_with_the_users_own_interventions(model):
    method, push = Stub(width(model)), torch.linspace(-1, 1, width(model))
    with model.trace(torch.tensor([PROMPT])):
        layer(model, 0).output = layer(model, 0).output + push
        ot.intervene(model, method, T)
        layer(model, 2).output = layer(model, 2).output - push
        found = nnsight.save(model.lm_head.output)
    handles = [
        layer(model, index)._module.register_forward_hook(lambda m, a, out, s=sign: out + s * push)
        for index, sign in ((0, 1), (2, -1))
    ]
    with ot.steering(model, method, T):
        expected = logits_of(model)
    for handle in handles:
        handle.remove()
    assert torch.allclose(found, expected, atol=1e-4)


def test_intervening_refuses_what_it_cannot_do(model):
    method = Stub(width(model))
    with pytest.raises(ValueError, match="inside a trace"):
        ot.intervene(model, method, T)
    for wrong, options, said in (
        (Stub(width(model), layer=17), {"T": T}, "does not exist"),
        (Across(ot.Site(1, "mlp_out"), ot.Site(1, "mlp_out")), {"T": T}, "resid_pre, z and resid_post"),
        ([(method, T)], {"T": T}, "list of methods"),
        (method, {"T": torch.ones(5)}, "5"),
    ):
        with pytest.raises(Exception, match=said), model.trace(torch.tensor([PROMPT])):
            ot.intervene(model, wrong, **options)


# Generating


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_past_kv_cache": False}, {"batch_size": 2}], ids=str)
def test_generate_gives_what_a_bridge_gives(model, family, options):
    method, prompts = Stub(width(model)), ot.Tokenised(*padded(ROWS, 0))
    here = ot.generate(model, prompts, method, torch.tensor([3.0, 1.0, 2.0]), max_new_tokens=4, **options)
    bridge = load("bridge", family)
    there = ot.generate(bridge, prompts, method, torch.tensor([3.0, 1.0, 2.0]), max_new_tokens=4, **options)
    assert torch.equal(here.tokens, there.tokens) and torch.equal(here.mask, there.mask)
    assert here.texts == there.texts and here.continuations == there.continuations
    assert here.report.tokens_steered == there.report.tokens_steered


def test_generate_samples_from_its_seed_alone(model):
    def sampled(seed):
        return ot.generate(model, torch.tensor([PROMPT] * 4), max_new_tokens=6, do_sample=True, seed=seed).tokens

    state = torch.get_rng_state()
    first = sampled(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sampled(1), first) and not torch.equal(sampled(2), first)


def test_generate_does_not_follow_the_checkpoints_own_settings(model):
    """A checkpoint may say that it samples, punishes repetition, or forbids n-grams."""
    plain = ot.generate(model, torch.tensor([PROMPT]), max_new_tokens=8, stop_at_eos=False).tokens
    own = model._module.generation_config
    said = {"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.8, "top_k": 3, "no_repeat_ngram_size": 1}
    said |= {"suppress_tokens": plain[0, -3:].tolist(), "num_return_sequences": 2, "return_dict_in_generate": True}
    said |= {"guidance_scale": 2.0}
    before = {name: getattr(own, name) for name in said}
    try:
        for name, value in said.items():
            setattr(own, name, value)
        assert torch.equal(
            ot.generate(model, torch.tensor([PROMPT]), max_new_tokens=8, stop_at_eos=False).tokens, plain
        )
    finally:
        for name, value in before.items():
            setattr(own, name, value)


def test_losses_are_those_that_a_bridge_finds(model, family):
    prompts = ot.Tokenised(*padded(ROWS, 0))
    out = ot.generate(model, prompts, max_new_tokens=6)
    found, counted = token_losses(model, out, batch_size=2)
    expected, mask = token_losses(load("bridge", family), out)
    assert torch.equal(counted, mask) and counted.any() and (found - expected).abs().max() <= 1e-4


def test_a_plain_wrapper_does_what_it_can(family):
    """nnsight.NNsight has no tokenizer, and generates by Hugging Face alone."""
    wrapped, prompts = nnsight.NNsight(copy.deepcopy(hugging_face(family))), ot.Tokenised(*padded(ROWS, 0))
    model, method = load("nnsight", family), Stub(hugging_face(family).config.hidden_size)
    a, b = (ot.collect(each, prompts, prompts, layer=LAYER).desired for each in (wrapped, model))
    assert torch.allclose(a, b, atol=1e-5)
    one, other = (
        ot.generate(each, prompts, method, T, max_new_tokens=4, stop_at_eos=False) for each in (wrapped, model)
    )
    assert torch.equal(one.tokens[one.mask], other.tokens[other.mask]) and torch.equal(one.mask, other.mask)
    assert one.report.tokens_steered == other.report.tokens_steered


def test_collect_inside_a_trace_is_refused(model):
    with pytest.raises(ValueError, match="outside the trace"), model.trace(torch.tensor([PROMPT])):
        ot.collect(model, torch.tensor([PROMPT]), torch.tensor([[4]]), layer=LAYER)


def test_texts_get_the_bos_that_the_tokenizer_gives(family):
    model = load("nnsight", family)
    text = "the film was" if family != "stories260K" else "Once upon a time"
    out = ot.generate(model, text, max_new_tokens=1)
    assert out.tokens[0, :-1].tolist() == model.tokenizer(text)["input_ids"]
    assert ot.generate(model, text, max_new_tokens=1, prepend_bos=True).tokens[0, 0] == model.tokenizer.bos_token_id


def test_a_model_without_weights_gets_them_when_it_is_steered():
    model, method = ot.load_model(saved("llama"), library="nnsight"), Stub(32)
    assert not model.dispatched
    with ot.steering(model, method, T):
        new, found = steps_of(model, ROWS)
    for error, _ in deviations("llama", ROWS, new, found, "decoding", method, [T] * 3):
        assert error <= TOLERANCE
