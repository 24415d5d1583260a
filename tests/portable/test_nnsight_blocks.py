"""Finding the blocks of any architecture, the residual stream in what they return, and the real tokens of a pass."""

import copy
import itertools

import beartype  # noqa: F401  nnsight before it would break it
import nnsight
import pytest
import torch
from architectures import ARCHITECTURES, EAGER_ONLY, LAYERS, WIDTH, tiny
from models import hugging_face, tokenizer
from nnsight import NNsight, TransformersModel
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from odesteer_tl.portable import decoder_blocks
from odesteer_tl.portable.nnsight.blocks import blocks_of, output_with, real_tokens, value_in

pytestmark = pytest.mark.filterwarnings("ignore:.*was never reached")  # how an open `tracer.iter[:]` ends

NAMES = list(ARCHITECTURES)
WAYS = [(name, way) for name in NAMES for way in ("eager", "sdpa") if way == "eager" or name not in EAGER_ONLY]
BLOCKS = {name: path for name, (_, _, path) in ARCHITECTURES.items()}
EFFECT, TOLERANCE = 0.1, 1e-5

LONG, SHORT = [1, 5, 6, 7, 9, 8, 4], [1, 8, 4]  # longer than the sliding windows, and shorter
PADS = len(LONG) - len(SHORT)
LEFT = torch.tensor([LONG, [0] * PADS + SHORT]), torch.tensor([[1] * len(LONG), [0] * PADS + [1] * len(SHORT)])
RIGHT = torch.tensor([LONG, SHORT + [0] * PADS]), torch.tensor([[1] * len(LONG), [1] * len(SHORT) + [0] * PADS])
FULL = torch.tensor([LONG]), None


def wrapped(name, attention="eager"):
    return TransformersModel(tiny(name, attention), tokenizer=tokenizer(), task="text-generation")


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_are_found(name):
    hf = tiny(name)
    for model in (wrapped(name), NNsight(hf)):
        found = blocks_of(model)
        assert found._module is hf.get_submodule(BLOCKS[name])
        assert len(found) == LAYERS and found[1]._module is hf.get_submodule(f"{BLOCKS[name]}.1")
        for told in (BLOCKS[name], found):
            assert blocks_of(model, told) is found


def logits(model, ids, vector=None, told=None, **options):
    with model.trace(ids, use_cache=False, **options):
        if vector is not None:
            block = blocks_of(model, told)[1]
            output = block.output
            block.output = output_with(output, value_in(output) + vector)
        found = nnsight.save(model.output.logits)
    return found


@torch.no_grad()
def hooked_logits(hf, path, ids, vector):
    def hook(module, args, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    handle = hf.get_submodule(f"{path}.1").register_forward_hook(hook)
    try:
        return hf(ids, use_cache=False).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_edit_there_is_a_torch_hook_on_the_block(name):
    hf, ids = tiny(name), FULL[0]
    vector = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    found = logits(wrapped(name), ids, vector)
    assert (found - hooked_logits(hf, BLOCKS[name], ids, vector)).abs().max() < TOLERANCE
    assert (found - hf(ids).logits).abs().max() > EFFECT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon_alibi"])
@torch.no_grad()
def test_half_precision(name, dtype):
    hf = copy.deepcopy(tiny(name)).to(dtype)
    model = TransformersModel(hf, tokenizer=tokenizer(), task="text-generation")
    vector = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = logits(model, FULL[0], vector)
    assert torch.equal(found, hooked_logits(hf, BLOCKS[name], FULL[0], vector)) and found.dtype == dtype
    assert (found - hf(FULL[0]).logits).abs().max() > EFFECT
    check(traced(model, *LEFT), LEFT[1])


def traced(model, ids, mask):
    """What `real_tokens` says at each layer of one pass, as (layer, width, real, cached)."""
    said = {} if mask is None else {"attention_mask": mask}
    with model.trace(ids, **said):
        seen = nnsight.save([])
        for layer, block in enumerate(blocks_of(model)):
            seen.append((layer, ids.shape[1], *real_tokens(block.inputs, *ids.shape, layer)))
    return seen


def generated(model, ids, mask, steps=4, **options):
    said = {} if mask is None else {"attention_mask": mask}
    rows = len(ids) * options.get("num_beams", 1)
    with model.generate(max_new_tokens=steps, min_new_tokens=steps, do_sample=False, **options) as tracer:
        with tracer.invoke(ids, **said):
            seen = nnsight.save([])
            for _ in tracer.iter[:]:
                for layer, block in enumerate(blocks_of(model)):
                    inputs = block.inputs
                    width = inputs[0][0].shape[1]
                    seen.append((layer, width, *real_tokens(inputs, rows, width, layer)))
    return seen


ONE = [(len(LONG), 0)]


def check(seen, mask, passes=ONE):
    """Against the truth: `passes` are (width, cached), and generated tokens are real."""
    assert [(layer, width, cached) for layer, width, _, cached in seen] == [
        (layer, width, cached) for width, cached in passes for layer in range(LAYERS)
    ]
    for _, width, real, cached in seen:
        if real is None:
            assert mask is None or mask[:, cached : cached + width].all(), "a pad was not noticed"
            continue
        rows = len(real)
        end = cached + width
        truth = torch.ones(rows, end, dtype=torch.bool)
        if mask is not None:
            truth[:, : mask.shape[1]] = mask.repeat_interleave(rows // len(mask), 0)[:, :end].bool()
        assert real.dtype == torch.bool and torch.equal(real, truth[:, cached:])


@pytest.mark.parametrize("name, way", WAYS)
@pytest.mark.parametrize("ids, mask", [FULL, LEFT, RIGHT], ids=["single", "left", "right"])
def test_real_tokens_of_one_pass(name, way, ids, mask):
    check(traced(wrapped(name, way), ids, mask), mask)


CACHED = [(7, 0), (1, 7), (1, 8), (1, 9)]
WHOLE = [(7, 0), (8, 0), (9, 0), (10, 0)]
CHUNKS = [(3, 0), (3, 3), (1, 6), (1, 7), (1, 8), (1, 9)]


HOW = {
    "cached": (CACHED, {}),
    "uncached": (WHOLE, {"use_cache": False}),
    "chunks": (CHUNKS, {"prefill_chunk_size": 3}),
    "static": (CACHED, {"cache_implementation": "static"}),
    "beams": (CACHED, {"num_beams": 2}),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", ["single", "left"])
@pytest.mark.parametrize("how", HOW)
def test_real_tokens_while_generating(name, rows, how):
    """With eager attention and with sdpa in turn, so that every two of the four factors meet."""
    (ids, mask), (passes, options) = (FULL if rows == "single" else LEFT), HOW[how]
    turn = NAMES.index(name) + (rows == "left") + list(HOW).index(how)
    way = "eager" if turn % 2 or name in EAGER_ONLY else "sdpa"
    if name == "falcon_alibi" and "cache_implementation" in options:
        return  # transformers cannot: its ALiBi wants a mask with two axes, and `generate` prepares one with four
    if name == "gemma4":  # or else its last block is given the last column alone
        options = {**options, "output_hidden_states": True}
    check(generated(wrapped(name, way), ids, mask, **options), mask, passes)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}])
def test_a_block_that_is_given_the_last_token_alone(options):
    with pytest.raises(ValueError, match=r"Block 2 is given only the last 1 of 7 tokens.*output_hidden_states=True"):
        generated(wrapped("gemma4"), *LEFT, **options)


@pytest.mark.parametrize("name, way", WAYS)
def test_real_tokens_of_two_invokes(name, way):
    model = wrapped(name, way)
    with model.trace() as tracer:
        seen = nnsight.save([])
        for row in (LONG, SHORT):
            with tracer.invoke(torch.tensor([row])):
                for layer, block in enumerate(blocks_of(model)):
                    seen.append((layer, block.inputs[0][0].shape[1], *real_tokens(block.inputs, 1, len(LONG), layer)))
        with tracer.invoke():  # sees the whole batch
            for layer, block in enumerate(blocks_of(model)):
                seen.append((layer, block.inputs[0][0].shape[1], *real_tokens(block.inputs, 2, len(LONG), layer)))
    for mask in (LEFT[1][:1], LEFT[1][1:], LEFT[1]):
        found = [s for s in seen if len(s[2]) == len(mask) and torch.equal(s[2][-1], mask[-1].bool())]
        check(found, mask)


@pytest.mark.parametrize("name, way", WAYS)
@pytest.mark.parametrize("own", [True, False], ids=["own", "grown"])
def test_real_tokens_after_a_cache_of_the_users(name, way, own):
    """The second pass continues the first by columns of which some are pads; a cache may make its layers as it goes."""
    model, (ids, mask) = wrapped(name, way), LEFT
    config = model.config
    cache = DynamicCache(config=getattr(config, "text_config", config)) if own else DynamicCache()
    for start, end in itertools.pairwise([0, 2, 7]):
        with model.trace(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True):
            seen = nnsight.save([])
            for layer, block in enumerate(blocks_of(model)):
                seen.append((layer, end - start, *real_tokens(block.inputs, 2, end - start, layer)))
        check(seen, mask, [(end - start, start)])


def test_masks_of_other_kinds():
    def given(mask, width=3, cache=None, by_name=True):
        hidden = torch.zeros(2, width, WIDTH)
        inputs = ((hidden,), {"attention_mask": mask}) if by_name else ((hidden, cache, mask), {})
        return real_tokens(inputs, 2, width, 0)

    flash = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    truth = torch.tensor([[True, True, True], [False, True, True]])
    for mask in (flash, flash.bool(), flash.float()):
        assert torch.equal(given(mask)[0], truth)
    assert torch.equal(given(flash.bool(), by_name=False)[0], truth)
    one = torch.full((3, 3), float("-inf")).triu(1)[None, None]
    assert given(one)[0].shape == (2, 3) and given(one)[0].all(), "one mask for all rows"
    assert given(None) == (None, 0)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache.update(torch.zeros(2, 1, 4, 8), torch.zeros(2, 1, 4, 8), 0)
    assert given(flash.bool(), cache=cache, by_name=False)[1] == 4
    with pytest.raises(ValueError, match=r'attn_implementation="sdpa"'):
        given({"full_attention": one})
    with pytest.raises(ValueError, match="does not fit 2 rows of 3 columns after 0"):
        given(one[..., :2])
    with pytest.raises(ValueError, match=r"cache in argument 1, a tuple, does not say its length.*use_cache=False"):
        given(flash.bool(), cache=((torch.zeros(2),), (torch.zeros(2),)), by_name=False)


class Block(nn.Module):
    """Returns a tuple, and holds as many experts as its model has blocks. `part` names what attends."""

    def __init__(self, part):
        super().__init__()
        self.add_module(part, nn.Linear(WIDTH, WIDTH))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.part = part

    def forward(self, hidden):
        hidden = hidden + getattr(self, self.part)(hidden)
        return hidden + sum(expert(hidden) for expert in self.experts), "weights"


class MadeUp(nn.Module):
    def __init__(self, part="mixer", config=None):
        super().__init__()
        torch.manual_seed(0)
        self.config = config
        self.embed, self.head = nn.Embedding(24, WIDTH), nn.Linear(WIDTH, 24)
        self.adapters = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.trunk = nn.ModuleList(Block(part) for _ in range(LAYERS))
        self.heads = nn.ModuleList(Block(part) for _ in range(LAYERS - 1))

    def forward(self, ids, use_cache=False):
        hidden = self.embed(ids)
        for adapter, block in zip(self.adapters, self.trunk, strict=True):
            hidden = block(hidden + adapter(hidden))[0]
        return Logits(self.head(hidden))


class Logits:
    def __init__(self, logits):
        self.logits = logits


class Config:
    num_hidden_layers = LAYERS


@pytest.mark.parametrize("part, config, told", [("attn", Config(), None), ("mixer", None, "trunk")])
def test_tuples_and_lists_of_the_same_length(part, config, told):
    """Experts and adapters come in as many as there are blocks; the block's other outputs stay as they are."""
    with torch.random.fork_rng(devices=[]):
        hf = MadeUp(part, config)
    model, vector = NNsight(hf), torch.ones(WIDTH)
    assert blocks_of(model, told)._module is hf.trunk
    found = logits(model, FULL[0], vector, told)
    assert (found - hooked_logits(hf, "trunk", FULL[0], vector)).abs().max() < TOLERANCE
    assert (found - hf(FULL[0]).logits).abs().max() > EFFECT
    assert output_with((vector, "weights"), 2 * vector)[1] == "weights"


def test_an_unknown_architecture_says_what_to_pass():
    for hf, why in ((MadeUp(), "configuration does not say"), (MadeUp("mixer", Config()), "3 are expected")):
        model = NNsight(hf)
        with pytest.raises(ValueError, match=why) as error:
            blocks_of(model)
        for hint in ('blocks="transformer.h"', "blocks=model.transformer.h", "adapters (3)", "trunk (3)", "MadeUp"):
            assert hint in str(error.value)
        assert blocks_of(model, "trunk") is blocks_of(model, model.trunk) is model.trunk
        for wrong in ("trunk.h", "embed", model.embed, 3):
            with pytest.raises(ValueError, match=r"leads nowhere|is no list"):
                blocks_of(model, wrong)
    twice = MadeUp("attn", Config())
    twice.draft = copy.deepcopy(twice.trunk)
    with pytest.raises(ValueError, match=r"2 lists of decoder blocks \(trunk, draft\)"):
        blocks_of(NNsight(twice))


def test_what_is_no_residual_stream_is_refused():
    for output in (None, (), ("weights",), torch.zeros(2, 3), (torch.zeros(4, 1, 2, 3), None)):
        with pytest.raises(ValueError, match="Pass blocks="):
            value_in(output)


def test_a_model_without_weights(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    model = TransformersModel(str(tmp_path), tokenizer=tokenizer(), task="text-generation")
    assert not model.dispatched and next(model._module.parameters()).is_meta
    assert blocks_of(model).path == "model.model.layers"


def test_the_lists_of_a_model_are_those_that_torch_names():
    """A shared list bears its first name, and an absent part none."""
    inner = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.ModuleList()])
    model = torch.nn.ModuleDict({"b": torch.nn.Sequential(inner, torch.nn.ModuleList()), "a": inner})
    model.register_module("gone", None)
    for whole in (model, inner, hugging_face("llama"), hugging_face("gpt2")):
        named = [(path, part) for path, part in whole.named_modules() if isinstance(part, torch.nn.ModuleList)]
        assert decoder_blocks._lists(whole) == named and named
