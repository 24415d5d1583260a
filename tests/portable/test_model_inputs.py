"""Where a pass stands is read by what a call holds, under any name; what is not understood is said, never guessed."""

import copy

import nnsight
import pytest
import torch
import transformers
from architectures import WIDTH, tiny
from models import tokenizer
from oracle import LAYER, Stub, T
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import odesteer_tl as ot
from odesteer_tl.portable.kv_caches import cache_in, length_at, length_of, offset_in
from odesteer_tl.portable.model_inputs import compare, declared

MADE = "transformers 5.99.0"
METHOD = Stub(WIDTH)


def filled(columns, cache=None, layers=3):
    cache = DynamicCache() if cache is None else cache
    for layer in range(layers):
        cache.update(torch.zeros(2, 1, columns, 8), torch.zeros(2, 1, columns, 8), layer)
    return cache


def static(columns):
    cache = StaticCache(config=tiny("llama").config, max_cache_len=12)
    for layer in range(3):
        cache.update(torch.zeros(2, 2, columns, 8), torch.zeros(2, 2, columns, 8), layer)
    return cache


def sliding(columns):
    return filled(columns, DynamicCache(config=tiny("mistral").config))


CACHES = {
    "dynamic": lambda n: filled(n),
    "static": static,
    "sliding window": sliding,
    "encoder-decoder": lambda n: EncoderDecoderCache(filled(n), DynamicCache()),
    "legacy": lambda n: tuple((torch.zeros(2, 1, n, 8), torch.zeros(2, 1, n, 8)) for _ in range(3)),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", ["past_key_values", "cache", "layer_past", "past_whatever_6"])
def test_a_cache_is_found_by_its_kind_under_any_name(kind, name):
    for columns in (1, 5, 9):  # shorter and longer than the sliding window
        given = {"input_ids": torch.ones(2, 1, dtype=torch.long), name: CACHES[kind](columns), "use_cache": True}
        assert offset_in(given, 1, lambda cache: None, MADE)[0] == columns
        assert length_at(cache_in(given, MADE), 1, 1, None, MADE) == columns
    assert offset_in({"input_ids": torch.ones(2, 1), name: None}, 1, lambda cache: None, MADE) == (0, None)


class Opaque:
    """Holds keys and values, and says nothing of their number."""


@pytest.mark.parametrize("name, value", [("cache", Opaque()), ("past_states", [1]), ("state", [torch.zeros(2)])])
def test_a_cache_without_a_length_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*does not say its length.*{MADE}.*use_cache=False") as told:
        offset_in({"input_ids": torch.ones(1, 1), name: value}, 1, lambda cache: None, MADE)
    assert "input_ids: float32 (1, 1)" in str(told.value), "the arguments seen are named"


def test_two_caches_are_refused_and_one_that_comes_twice_is_not():
    one, other = filled(3), filled(4)
    assert cache_in({"a": one, "cache": one}, MADE) is one
    with pytest.raises(ValueError, match="2 caches are given"):
        cache_in({"a": one, "cache": other}, MADE)


class StateLayer:
    def __init__(self, filled):
        self.has_previous_state = {0: filled}


class OfLayers:
    def __init__(self, *layers):
        self.layers = layers

    def get_seq_length(self):
        raise ValueError("no layer counts")


def test_a_state_without_columns_is_counted_by_whoever_followed_it_or_refused():
    empty, full = OfLayers(StateLayer(False)), OfLayers(StateLayer(True))
    assert length_of(empty, None, MADE) == 0 and length_of(full, 7, MADE) == 7
    assert length_at(full, 0, 1, 7, MADE) == 7
    for read in (lambda: length_of(full, None, MADE), lambda: length_at(full, 0, 1, None, MADE)):
        with pytest.raises(ValueError, match="filled before the steering began"):
            read()


def test_layers_that_say_nothing_are_refused():
    """As where a cache layer's get_seq_length is renamed: each token would count as a new prompt."""
    with pytest.raises(ValueError, match=r"no layer of the cache \(Opaque\) says how much it holds"):
        length_at(OfLayers(Opaque()), 0, 1, None, MADE)
    with pytest.raises(ValueError, match="says how much it holds"):
        length_of(OfLayers(Opaque()), None, MADE)


# Witnesses


def call(width=1, offset=4, **own):
    return {"input_ids": torch.ones(2, width, dtype=torch.long), "cache": filled(offset)} | own


def read(given, width=1):
    offset, _ = offset_in(given, width, lambda cache: None, MADE)
    compare(given, declared(given.get("attention_mask"), offset, width, MADE), width, offset, MADE)
    return offset


LEFT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@pytest.mark.parametrize(
    "own",
    [
        {"attention_mask": LEFT},
        {"attention_mask": LEFT, "position_ids": torch.tensor([[4], [2]])},
        {"attention_mask": LEFT, "position_ids": torch.tensor([[4], [4]])},
        {"position_ids": torch.tensor([[4]])},
        {"cache_position": torch.tensor([4])},
        {"position_ids": torch.tensor([[[9], [9]]]), "attention_mask": LEFT},  # of several axes: not understood
    ],
    ids=str,
)
def test_witnesses_that_agree(own):
    assert read(call(**own)) == 4


@pytest.mark.parametrize(
    "own, said",
    [
        ({"attention_mask": LEFT[:, 1:]}, r"cache holds 4 columns.*mask covers 4.*\[batch, 5\]"),
        ({"attention_mask": torch.ones(2, 6)}, "mask covers 6"),
        ({"attention_mask": torch.ones(2, 1)}, "mask covers 1"),
        ({"position_ids": torch.tensor([[0]])}, "position ids of row 0 go from 0 to 0"),
        ({"attention_mask": LEFT, "position_ids": torch.tensor([[4], [3]])}, "position ids of row 1 go from 3"),
        ({"cache_position": torch.tensor([0])}, "cache_position is 0"),
        ({"cache": None, "position_ids": torch.tensor([[4]])}, "0 columns come before this pass"),
        ({"cache": None, "attention_mask": LEFT}, "cache holds 0 columns.*mask covers 5"),
    ],
    ids=str,
)
def test_witnesses_that_disagree_are_told_of(own, said):
    with pytest.raises(ValueError, match=said) as told:
        read(call(**own))
    assert MADE in str(told.value) and "constraints.txt" in str(told.value)


def test_rows_packed_into_one_are_refused():
    with pytest.raises(ValueError, match="continuous batching"):
        read(call(cu_seq_lens_q=torch.tensor([0, 2, 5])))
    packed = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(ValueError, match="position ids of row 0 go from 0 to 1"):
        read({"input_ids": torch.ones(1, 5), "position_ids": packed}, 5)


def test_a_mask_of_another_form_is_refused():
    for mask in (torch.ones(2, 1, 3), "causal"):
        with pytest.raises(ValueError, match=r'attn_implementation="sdpa"'):
            declared(mask, 0, 3)


# A model that renames, hides or shifts, steered


class Renaming(nn.Module):
    """A stack of blocks as transformers' are, which gives its cache another name, or none that can be seen."""

    def __init__(self, how):
        super().__init__()
        self.how, self.config = how, None
        self.layers = nn.ModuleList([Averaging() for _ in range(3)])
        self.kept = DynamicCache()

    def forward(self, input_ids, attention_mask=None, use_cache=None, position_ids=None, memory=None, **other):
        hidden = torch.nn.functional.one_hot(input_ids, WIDTH).float()
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, number, self.kept if self.how == "hidden" else memory)
        return hidden


class Averaging(nn.Module):
    """The mean of all tokens so far, by a cache of their sum and count. The name of its part says that it attends."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden, number, cache):
        keys = hidden[:, None]
        if cache is not None:
            keys, _ = cache.update(keys, keys, number)
        total = keys[:, 0].cumsum(1)[:, -hidden.shape[1] :]
        counts = torch.arange(1, keys.shape[2] + 1)[-hidden.shape[1] :, None]
        return hidden + self.attention(total / counts)


def fake(how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Renaming(how)


@pytest.mark.parametrize("rule, count", [("decoding", 3), ("generated", 2), ("prompt", 3), (slice(0, 2), 2)], ids=str)
def test_a_cache_under_a_new_name_steers_as_without_a_cache(rule, count):
    model = fake("renamed")
    wrapped, ids = nnsight.NNsight(model), torch.tensor([[1, 5, 6, 7, 9]])
    where = {"blocks": "layers", "positions": rule}
    with torch.no_grad():
        with ot.steering(wrapped, METHOD, T, **where, prompt_lengths=3) as report:
            whole = wrapped._module(ids)
        assert report.tokens_steered == {LAYER: count}
        cache, parts = DynamicCache(), []
        with ot.steering(wrapped, METHOD, T, **where) as report:
            for start, end in ((0, 3), (3, 4), (4, 5)):
                parts.append(wrapped._module(ids[:, start:end], memory=cache, use_cache=True))
    assert report.tokens_steered == {LAYER: count}, "a decoded token was taken for a prompt"
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5) and not torch.allclose(whole, model(ids), atol=0.1)


@pytest.mark.parametrize("how", ["hidden", "opaque", "shifted mask"])
def test_what_cannot_be_read_while_decoding_raises(how):
    wrapped, ids, cache = nnsight.NNsight(fake(how)), torch.tensor([[1, 5, 6, 7]]), DynamicCache()
    own = {"hidden": {}, "opaque": {"cache_of_tomorrow": Opaque()}, "shifted mask": {"memory": cache}}[how]
    said = {
        "hidden": "no argument is its cache",
        "opaque": "does not say its length",
        "shifted mask": "mask covers 3",
    }
    with torch.no_grad(), ot.steering(wrapped, METHOD, T, blocks="layers"):
        wrapped._module(ids[:, :3], use_cache=True, **({} if how == "opaque" else own))
        mask = {"attention_mask": torch.ones(1, 3)} if how == "shifted mask" else {}
        with pytest.raises(ValueError, match=said.get(how, "mask covers 3")) as told:
            wrapped._module(ids[:, 3:], use_cache=True, **mask, **own)
    assert "Renaming" in str(told.value) and "use_cache=False" in str(told.value)


def test_a_prompt_of_one_token_is_no_hidden_continuation():
    """A bridge begins to generate with use_cache=True and no cache."""
    from odesteer_tl.parity import models as made

    bridge, one = made.as_bridge(tiny("llama"), tokenizer()), torch.tensor([[1]])
    with ot.steering(bridge, METHOD, T) as report:
        for _ in range(2):
            bridge.generate(one, max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    assert report.tokens_steered == {LAYER: 6}


def test_a_batch_of_a_model_that_swallows_its_mask_is_refused():
    class Swallowing(Renaming):
        def forward(self, input_ids, use_cache=None, **other):
            return super().forward(input_ids)

    wrapped = nnsight.NNsight(Swallowing("renamed"))
    with torch.no_grad(), ot.steering(wrapped, METHOD, T, blocks="layers"):
        wrapped._module(torch.tensor([[1, 2]]))
        with pytest.raises(ValueError, match="takes no attention_mask"):
            wrapped._module(torch.tensor([[1, 2], [0, 3]]), attention_mask=torch.tensor([[1, 1], [0, 1]]))


def test_a_run_that_seems_to_begin_anew_raises_in_a_graph():
    """`intervene` follows one generation: a pass that says it is the first, and is not, has lost its cache."""
    model = nnsight.TransformersModel(copy.deepcopy(tiny("llama")), tokenizer=tokenizer(), task="text-generation")
    lost = model._module.model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, _without_cache(kwargs)), with_kwargs=True
    )
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
    try:
        with pytest.raises(Exception, match="5 tokens of these rows were seen"):
            with model.generate(**options) as tracer:
                with tracer.invoke(torch.tensor([[1, 5, 6, 7, 9]])):
                    for _ in tracer.iter[:]:
                        ot.intervene(model, METHOD, T)
                with tracer.invoke():
                    nnsight.save(tracer.result)
    finally:
        lost.remove()


def _without_cache(kwargs):
    dropped = {"cache", "past_key_values", "attention_mask", "position_ids", "use_cache"}
    return {name: value for name, value in kwargs.items() if name not in dropped}


def test_transformers_is_the_library_that_is_named():
    hf = copy.deepcopy(tiny("llama"))
    model = nnsight.TransformersModel(hf, tokenizer=tokenizer(), task="text-generation")
    with torch.no_grad(), ot.steering(model, METHOD, T):
        hf(torch.tensor([[1, 5]]))
        with pytest.raises(ValueError, match=rf"transformers {transformers.__version__} \(LlamaModel\)"):
            hf(torch.tensor([[1, 5]]), attention_mask=torch.ones(1, 3))
