"""nnsight: what users of it do beside the usual, each against a torch hook or the same done by hand."""

import copy

import nnsight
import pytest
import torch
from models import hugging_face, load
from oracle import LAYER, PROMPTS, STEPS, TOLERANCE, Stub, T, deviations, logits, padded

import odesteer_tl as ot

ROWS, METHOD = PROMPTS["batch"], Stub(32)
TOKENS, MASK = padded(ROWS, 0)
OPTIONS = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
OUT = {"output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(params=["llama", "gpt2"])
def loaded(request):
    return request.param, load("nnsight", request.param)


@pytest.fixture
def model():
    return load("nnsight", "llama")


def block(model):
    return (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[LAYER]


def plain(model, tokens=TOKENS, mask=MASK):
    with model.trace(tokens, attention_mask=mask):
        found = nnsight.save(model.lm_head.output)
    return found


def check(family, rows, new, found, rule="decoding"):
    for error, _ in deviations(family, rows, new[:, -STEPS:], found, rule, METHOD, [T] * len(rows)):
        assert error <= TOLERANCE


# Passes


@pytest.mark.parametrize("rule", ["decoding", "generated", "all", slice(0, 2)], ids=str)
def test_a_prompt_in_chunks_keeps_its_pads(loaded, rule):
    """The pads of the short row reach beyond the first chunk."""
    family, model = loaded
    rows = [[1, 5, 6, 7, 9, 10, 11], [1, 8, 4]]
    tokens, mask = padded(rows, 0)
    with model.generate(prefill_chunk_size=2, **OPTIONS) as tracer:
        with tracer.invoke({"input_ids": tokens, "attention_mask": mask}):
            found = nnsight.save([])
            for _ in tracer.iter[: STEPS + 3]:
                ot.intervene(model, METHOD, T, positions=rule, prompt_lengths=[7, 3])
                found.append(model.lm_head.output[:, -1])
        with tracer.invoke():
            new = nnsight.save(tracer.result)
    check(family, rows, new, torch.stack(found[3:], dim=1), rule)
    with ot.steering(model, METHOD, T, positions=rule, prompt_lengths=[7, 3]):
        out = model.generate(tokens, attention_mask=mask, prefill_chunk_size=2, **OPTIONS, **OUT)
    check(family, rows, out.sequences, torch.stack(out.logits, dim=1), rule)


def test_a_prompt_in_chunks_needs_its_length(model):
    with pytest.raises(ValueError, match="prompt_lengths"):
        with model.generate(TOKENS, attention_mask=MASK, prefill_chunk_size=2, **OPTIONS) as tracer:
            for _ in tracer.iter[:]:
                ot.intervene(model, METHOD, T)


def test_a_cache_of_a_padded_batch_filled_elsewhere_is_refused_where_positions_count(model):
    def go_on(**options):
        with torch.no_grad():
            cache = model._module(TOKENS, attention_mask=MASK, use_cache=True).past_key_values
        more, mask = torch.tensor([[5, 6], [7, 8], [9, 4]]), torch.cat([MASK, torch.ones(3, 2, dtype=torch.long)], 1)
        with model.trace({"input_ids": more, "attention_mask": mask}, past_key_values=cache):
            steered = nnsight.save(ot.intervene(model, METHOD, T, **options))
        return steered

    assert go_on(positions="all") == {LAYER: 6}
    with pytest.raises(ValueError, match="filled before this trace"):
        go_on(prompt_lengths=[7, 3, 5])


@pytest.mark.parametrize("way", ["steering", "intervene"])
def test_a_static_cache_which_brings_masks_of_its_own(loaded, way):
    family, model = loaded
    options = {**OPTIONS, "cache_implementation": "static"}
    if way == "steering":
        with ot.steering(model, METHOD, T, positions=slice(0, 2)):
            out = model.generate(TOKENS, attention_mask=MASK, **options, **OUT)
        new, found = out.sequences, torch.stack(out.logits, dim=1)
    else:
        with model.generate({"input_ids": TOKENS, "attention_mask": MASK}, **options) as tracer:
            found = nnsight.save([])
            for _ in tracer.iter[:STEPS]:
                ot.intervene(model, METHOD, T, positions=slice(0, 2))
                found.append(model.lm_head.output[:, -1])
            new = nnsight.save(tracer.result)
        found = torch.stack(found, dim=1)
    check(family, ROWS, new, found, slice(0, 2))


def test_a_mask_by_position_and_pads_on_the_right(loaded):
    family, model = loaded
    tokens, mask = torch.tensor([[1, 5, 6, 0, 0], [1, 8, 4, 7, 9]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    with ot.steering(model, METHOD, T) as report:
        found = model._module(tokens, None, mask).logits if family == "gpt2" else model._module(tokens, mask).logits
    with model.trace(tokens, attention_mask=mask):
        ot.intervene(model, METHOD, T)
        graph = nnsight.save(model.lm_head.output)
    for row, n, mine, other in zip([[1, 5, 6], [1, 8, 4, 7, 9]], (3, 5), found, graph, strict=True):
        expected = logits(hugging_face(family), row, [n - 1], METHOD, T)
        assert (mine[:n] - expected).abs().max() <= TOLERANCE and (other[:n] - expected).abs().max() <= TOLERANCE
    assert report.tokens_steered == {LAYER: 2}


def test_reads_only_from_some_step_on(loaded):
    """Where the block's input has passed, the pads are those of the pass before."""
    family, model = loaded
    for cache in (True, False):
        with model.generate({"input_ids": TOKENS, "attention_mask": MASK}, use_cache=cache, **OPTIONS) as tracer:
            found = nnsight.save([])
            for step in tracer.iter[:STEPS]:
                if step > 0:
                    block(model).output.sum()
                ot.intervene(model, METHOD, T)
                found.append(model.lm_head.output[:, -1])
            new = nnsight.save(tracer.result)
        check(family, ROWS, new, torch.stack(found, dim=1))


def test_a_batch_read_before_may_be_padded_and_is_refused(model):
    with pytest.raises(ValueError, match="before you read"), model.trace(TOKENS, attention_mask=MASK):
        block(model).output.sum()
        ot.intervene(model, METHOD, T)


def test_a_part_that_runs_by_itself_is_not_steered_by_an_earlier_pass(model):
    with ot.steering(model, METHOD, T):
        plain(model, TOKENS[:1], MASK[:1])
        inside = model._module.model.embed_tokens(TOKENS[:1])
        with pytest.raises(ValueError, match="outside a forward pass"):
            block(model)._module(inside, position_embeddings=model._module.model.rotary_emb(inside, TOKENS[:1]))


def test_the_stack_of_blocks_may_run_without_the_head(model):
    with ot.steering(model, METHOD, T):
        whole = plain(model, TOKENS[:1], MASK[:1])
        with model.model.trace(TOKENS[:1]):
            inside = nnsight.save(model.model.norm.output)
        assert torch.allclose(model._module.lm_head(inside), whole, atol=1e-5)


def test_a_scan_sees_shapes(model):
    with ot.steering(model, METHOD, T) as report:
        with model.scan(TOKENS, attention_mask=MASK):
            ot.intervene(model, METHOD, T)
            shape = nnsight.save(block(model).output.shape)
        assert tuple(shape) == (*TOKENS.shape, 32)
        plain(model)
    assert report.tokens_steered == {LAYER: 3}


# What stays and what goes


def test_clear_edits_ends_the_steering_however_the_model_is_called(model):
    before = plain(model)
    with pytest.warns(UserWarning, match="clear_edits"), ot.steering(model, METHOD, T):
        assert (plain(model) - before).abs().max() > 0.1
        model.clear_edits()
        assert torch.equal(plain(model), before)
        called = model._module(TOKENS, attention_mask=MASK).logits
        assert torch.allclose(called[MASK.bool()], before[MASK.bool()], atol=1e-5)


@pytest.mark.parametrize("kind", ["nnsight", "bridge"])
def test_a_copy_made_inside_the_block_is_another_model(kind):
    """It does not count as passes of the block, nor stay steered. A bridge's hooks cannot tell whose they are."""
    model = load(kind, "llama")
    inner = model._module if kind == "nnsight" else model

    def run(module):
        out = module(TOKENS, attention_mask=MASK)
        return getattr(out, "logits", out)

    before = run(inner)
    with ot.steering(model, METHOD, T) as report:
        run(inner)
        twin = copy.deepcopy(inner)
        if kind == "nnsight":
            assert torch.equal(run(twin), before)
            assert all(edit.over for edit in copy.deepcopy(model._edits))
        else:
            with pytest.raises(ValueError, match="outside a forward pass"):
                run(twin)
    assert torch.equal(run(twin), before)
    assert report.tokens_steered == {LAYER: 3}


def test_torch_hooks_of_the_users_come_after_steering_in_every_call(model):
    handle = block(model)._module.register_forward_hook(lambda module, args, output: output * 0.5)
    second = Stub(32, seed=4)
    with ot.steering(model, METHOD, T), ot.steering(model, second, 2 * T):
        traced = plain(model)
        assert torch.allclose(model._module(TOKENS, attention_mask=MASK).logits, traced, atol=1e-5)
    with ot.steering(model, [(METHOD, T), (second, 2 * T)]):
        assert torch.allclose(plain(model), traced, atol=1e-5)
    handle.remove()


# What is refused


@pytest.mark.parametrize("wrong", ["last", "genrated", slice(-1, None), 5, None, [True], torch.ones(5)], ids=str)
def test_positions_that_are_none(model, wrong):
    with pytest.raises(ValueError, match="positions"), model.trace(TOKENS, attention_mask=MASK):
        ot.intervene(model, METHOD, T, positions=wrong)


def test_what_does_not_fit_is_told(model):
    centred = Stub(32, processing="centred")
    cases = [
        (centred, {"T": T}, "centred"),
        (METHOD, {"T": T, "prompt_lengths": [1, 2]}, "3 rows"),
        (METHOD, {"T": T, "positions": torch.ones(2, 5, dtype=torch.bool)}, "3 rows"),
        (METHOD, {"T": T, "layer": True}, "block indices"),
        ([METHOD], {}, "pairs"),
        ([], {}, "list of methods"),
    ]
    for method, options, said in cases:
        with pytest.raises(ValueError, match=said), model.trace(TOKENS, attention_mask=MASK):
            ot.intervene(model, method, **options)
    with pytest.raises(ValueError, match="of an nnsight model"):
        ot.intervene(load("bridge", "llama"), METHOD, T)


# Gradients


def test_gradients_pass_through_steering(model):
    """dL/da at the block below, by autograd through ot.steering and ot.intervene, and through a torch hook."""

    def gradient(steer, by_hook=False):
        start = model.model.embed_tokens.weight.detach()[TOKENS].requires_grad_()
        if by_hook:
            loss = hook_loss(start)
        else:
            with model.trace(inputs_embeds=start, attention_mask=MASK):
                steer()
                out = nnsight.save(model.lm_head.output[:, -1].square().sum())
            loss = out
        return torch.autograd.grad(loss, start)[0]

    def hook_loss(start):
        def hook(module, args, output):
            return torch.cat([output[:, :-1], output[:, -1:] + T * METHOD.push(output[:, -1:])], dim=1)

        handle = block(model)._module.register_forward_hook(hook)
        try:
            return model._module(inputs_embeds=start, attention_mask=MASK).logits[:, -1].square().sum()
        finally:
            handle.remove()

    expected = gradient(None, by_hook=True)
    in_graph = gradient(lambda: ot.intervene(model, METHOD, T))
    with ot.steering(model, METHOD, T):
        in_block = gradient(lambda: None)
    scale = expected.abs().max()
    assert scale > 1e-3
    assert (in_graph - expected).abs().max() <= 1e-4 * scale and (in_block - expected).abs().max() <= 1e-4 * scale
