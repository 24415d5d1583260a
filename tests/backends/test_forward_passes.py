"""Passes that reach the blocks in other ways: states for caches, compiled steps, replays, adapters, decoders."""

import copy

import accelerate
import nnsight
import peft
import pytest
import torch
import transformers
from architectures import COMMON, GATED, WIDTH, tiny
from models import tokenizer
from torch import nn
from transformers.generation import ContinuousBatchingConfig

import odesteer_tl as ot
from odesteer_tl.parity import models as made

IDS, NEW, LAYER = torch.tensor([[1, 5, 6, 7, 9]]), 6, 1
OPTIONS = {
    "attention_mask": torch.ones_like(IDS), "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
RULES = {
    "decoding": lambda p: p >= 4, "generated": lambda p: p >= 5, "prompt": lambda p: p < 5, "first": lambda p: p < 3,
}  # fmt: skip
POSITIONS = {name: slice(0, 3) if name == "first" else name for name in RULES}
COUNTS = {"decoding": 6, "generated": 5, "prompt": 5, "first": 3}


@pytest.fixture(scope="module")
def caa():
    generator = torch.Generator().manual_seed(0)
    return ot.CAA.fit(ot.ContrastiveActivations(*torch.randn(2, 6, WIDTH, generator=generator), layer=LAYER))


def in_nnsight(hf):
    return nnsight.TransformersModel(copy.deepcopy(hf), tokenizer=tokenizer(), task="text-generation")


@torch.no_grad()
def hooked(hf, block, vector, rule, T, new=NEW):
    """Greedy, no cache, a plain torch hook: the tokens generated."""

    def hook(module, args, output):
        value = (output[0] if isinstance(output, tuple) else output).clone()
        for position in range(value.shape[1]):
            value[:, position] += T * vector * bool(rule(position))
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle, row = block.register_forward_hook(hook), IDS
    try:
        for _ in range(new):
            row = torch.cat([row, hf(row, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    finally:
        handle.remove()
    return row[0, IDS.shape[1] :].tolist()


@pytest.fixture(scope="module")
def mamba():
    config = transformers.MambaConfig(
        hidden_size=WIDTH, num_hidden_layers=3, state_size=4, intermediate_size=64, tie_word_embeddings=False, **COMMON
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.MambaForCausalLM(config).eval()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["bridge", "nnsight", "intervene"])
def test_a_state_space_model_is_steered_where_its_state_says_nothing(mamba, caa, way, rule):
    right = hooked(mamba, mamba.backbone.layers[LAYER], caa.barrier.weight, RULES[rule], 3.0)
    assert right != hooked(mamba, mamba.backbone.layers[LAYER], caa.barrier.weight, lambda p: False, 3.0)
    if way == "intervene":
        model = in_nnsight(mamba)
        with model.generate(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0) as tracer:
            with tracer.invoke(IDS):
                for _ in tracer.iter[:]:
                    ot.intervene(model, caa, T=3.0, positions=POSITIONS[rule], blocks="backbone.layers")
            with tracer.invoke():
                tokens = nnsight.save(tracer.result)
        assert tokens[0, 5:].tolist() == right
        return
    model, blocks = (
        (made.as_bridge(mamba, tokenizer()), None) if way == "bridge" else (in_nnsight(mamba), "backbone.layers")
    )
    out = ot.generate(
        model, IDS, caa, T=3.0, positions=POSITIONS[rule], max_new_tokens=NEW, stop_at_eos=False, blocks=blocks
    )
    assert out.tokens[0, 5:].tolist() == right and out.report.tokens_steered == {LAYER: COUNTS[rule]}


def test_a_state_that_was_filled_before_is_refused(mamba, caa):
    model = in_nnsight(mamba)
    with torch.no_grad():
        filled = model._module(IDS, use_cache=True)
        cache = getattr(filled, "cache_params", None) if not hasattr(filled, "cache") else filled.cache
        named = "cache" if "cache" in transformers.MambaForCausalLM.forward.__code__.co_varnames else "cache_params"
        with ot.steering(model, caa, T=3.0, blocks="backbone.layers", positions="all"):
            model._module(IDS, use_cache=False)
            with pytest.raises(ValueError, match="filled before the steering began"):
                model._module.backbone(torch.tensor([[3]]), use_cache=True, **{named: cache})


def test_steps_that_were_compiled_before_the_block_are_steered(caa):
    """On accelerators transformers compiles the decode step by itself under a static cache."""
    static = {
        "cache_implementation": "static",
        "compile_config": transformers.CompileConfig(backend="eager", mode=None, fullgraph=False),
    }
    static["compile_config"]._compile_all_devices = True
    model, hf = in_nnsight(tiny("llama")), tiny("llama")
    plain = model._module.generate(IDS, **OPTIONS, **static)
    with ot.steering(model, caa, T=4.0) as report:
        out = model._module.generate(IDS, **OPTIONS, **static)
    assert out[0, 5:].tolist() == hooked(hf, hf.model.layers[LAYER], caa.barrier.weight, RULES["decoding"], 4.0)
    assert report.tokens_steered == {LAYER: 6}
    assert torch.equal(model._module.generate(IDS, **OPTIONS, **static), plain), "compiled again, and unsteered"


@pytest.mark.parametrize("kind", ["bridge", "nnsight"])
def test_a_pass_that_ends_without_its_edit_raises(caa, kind, monkeypatch):
    """The mutant that drops the hook on decode steps."""
    from odesteer_tl.backends.edit_runner import EditRunner

    make = EditRunner.hook

    def dropping(self, site):
        carry_out = make(self, site)
        return lambda value, hook=None: carry_out(value, hook) if value.shape[1] > 1 else None

    monkeypatch.setattr(EditRunner, "hook", dropping)
    model = made.as_bridge(tiny("llama"), tokenizer()) if kind == "bridge" else in_nnsight(tiny("llama"))
    with pytest.raises(ValueError, match=r"steering at blocks\.1\.hook_resid_post did not run.*transformers"):
        ot.generate(model, IDS, caa, T=3.0, max_new_tokens=NEW)


def test_a_bridge_that_returns_a_cache_replays_its_text_with_the_same_tokens_steered(caa):
    bridge = made.as_bridge(tiny("llama"), tokenizer())
    with ot.steering(bridge, caa, T=3.0) as report:
        out, cache = bridge.generate(
            IDS, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False, return_cache=True,
            return_type="tokens",
        )  # fmt: skip
    # six passes steer a token each; the replay computes the last token too, which generation never ran
    assert report.tokens_steered == {LAYER: 7}
    with ot.steering(bridge, caa, T=3.0, prompt_lengths=5):
        _, right = bridge.run_with_cache(out)
    name = "blocks.2.hook_resid_post"
    assert torch.equal(cache[name], right[name])
    with ot.steering(bridge, caa, T=3.0):  # a text that was not generated here is a prompt of its own
        _, prompt = bridge.run_with_cache(out)
    assert (prompt[name] - right[name])[:, 4:10].abs().max() > 0.1


def test_rows_of_continuous_batching_are_refused_also_from_another_thread(caa):
    model = in_nnsight(tiny("llama"))
    settings = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    pages = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64, block_size=32)
    with pytest.raises(ValueError, match="continuous batching"), ot.steering(model, caa, T=3.0, positions="all"):
        model._module.generate_batch(
            inputs=[[1, 8, 4], [1, 9]], progress_bar=False, generation_config=settings,
            continuous_batching_config=pages,
        )  # fmt: skip


def test_a_checkpoint_with_several_ends_of_text_stops_at_each(caa):
    hf = copy.deepcopy(tiny("llama"))
    hf.generation_config.eos_token_id = [2, 16]
    for model in (in_nnsight(hf), made.as_bridge(hf, tokenizer())):
        out = ot.generate(model, IDS, max_new_tokens=10)
        assert out.tokens[0, 5:].tolist() == [21, 13, 20, 16]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("site", ["resid_post", "z"])
@pytest.mark.parametrize("kind", ["bridge", "nnsight"])
def test_gradients_under_checkpointing_are_those_without(kind, site, reentrant):
    generator = torch.Generator().manual_seed(1)
    hook = "blocks.1.attn.hook_z" if site == "z" else None
    acts = ot.ContrastiveActivations(*torch.randn(2, 6, WIDTH, generator=generator), layer=LAYER, hook_name=hook)
    method, found = ot.CAA.fit(acts), {}
    for checkpointing in (False, True, "unsteered"):
        hf = copy.deepcopy(tiny("llama"))
        model = made.as_bridge(hf, tokenizer()) if kind == "bridge" else in_nnsight(hf)
        inner = (model.original_model if kind == "bridge" else model._module).train()
        if checkpointing:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
        strength = 0.0 if checkpointing == "unsteered" else 3.0
        with ot.steering(model, method, T=strength, positions="all") as report:
            losses = [inner(inputs_embeds=k * x, use_cache=False).logits.logsumexp(-1).sum() for k in (1, 2)]
            sum(losses).backward()  # both passes are computed once more, the later one first
        assert report.tokens_steered == {LAYER: 20}
        found[checkpointing] = x.grad
    torch.testing.assert_close(found[True], found[False], atol=1e-5, rtol=1e-5)
    assert (found["unsteered"] - found[False]).abs().max() > 0.1


def test_a_model_with_adapters_is_steered_below_them(caa):
    adapted = peft.get_peft_model(
        copy.deepcopy(tiny("llama")), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model = nnsight.TransformersModel(adapted, tokenizer=tokenizer(), task="text-generation")
    out, hf = ot.generate(model, IDS, caa, T=4.0, max_new_tokens=NEW, stop_at_eos=False), tiny("llama")
    right = hooked(hf, hf.model.layers[LAYER], caa.barrier.weight, RULES["decoding"], 4.0)  # adapters begin at 0
    assert out.tokens[0, 5:].tolist() == right and out.report.tokens_steered == {LAYER: 6}


class Rounded(transformers.cache_utils.QuantizedLayer):
    """What a quantised cache does beside its kernels: it drops its last keys into what it has rounded, now and then."""

    def _quantize(self, tensor, axis):
        return (tensor * 2**20).round()

    def _dequantize(self, tensor):
        return tensor / 2**20


@pytest.mark.parametrize("rule", POSITIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # since transformers 5.24
def test_a_quantised_cache_is_counted(caa, family, rule):
    hf, layers = made.hugging_face(family), [Rounded(residual_length=3) for _ in range(3)]
    block = (hf.model.layers if family == "llama" else hf.transformer.h)[LAYER]
    right = hooked(hf, block, caa.barrier.weight, RULES[rule], 2.0)
    with ot.steering(hf, caa, 2.0, positions=POSITIONS[rule]) as report:
        out = hf.generate(IDS, past_key_values=transformers.cache_utils.Cache(layers=layers), **OPTIONS)
    assert out[0, 5:].tolist() == right and report.tokens_steered == {LAYER: COUNTS[rule]}
    assert layers[0].get_seq_length() == 5 + NEW - 1


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_an_encoder_decoder_is_steered_in_its_decoder(caa, name, cache):
    sizes = {
        "T5": {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "initializer_factor": 3.0},
        "Bart": {
            "d_model": WIDTH, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
            "init_std": 0.3, "forced_eos_token_id": None,
        },
    }[name]  # fmt: skip
    common = {"vocab_size": 24, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = getattr(transformers, f"{name}Config")(**common, **sizes)
        hf = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    path, strength = ("decoder.block", 6.0) if name == "T5" else ("model.decoder.layers", -8.0)
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "use_cache": cache}
    model = in_nnsight(hf)
    plain = model._module.generate(IDS, **options)
    with ot.steering(model, caa, T=strength, blocks=path) as report:
        out = model._module.generate(IDS, **options)
    vector, row = strength * caa.barrier.weight, torch.tensor([[1]])
    handle = hf.get_submodule(f"{path}.{LAYER}").register_forward_hook(
        lambda m, a, o: (o[0] + vector, *o[1:]) if isinstance(o, tuple) else o + vector
    )
    with torch.no_grad():
        for _ in range(NEW):
            row = torch.cat([row, hf(IDS, decoder_input_ids=row, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    handle.remove()
    assert torch.equal(out, row) and not torch.equal(out, plain)
    assert report.tokens_steered == {LAYER: NEW}


def test_guessed_tokens_that_are_taken_back_count_once_and_keep_their_prompt(caa):
    """Prompt lookup runs guesses after the prompt, and takes back from the cache what was refused."""
    from oracle import Asking

    model, hf = in_nnsight(tiny("llama")), tiny("llama")
    guess = {**OPTIONS, "max_new_tokens": 18, "prompt_lookup_num_tokens": 3}
    with ot.steering(model, caa, T=3.0, prompt_lengths=5) as report:
        out = model._module.generate(IDS, **guess)
    right = hooked(hf, hf.model.layers[LAYER], caa.barrier.weight, RULES["decoding"], 3.0, new=18)
    assert out[0, 5:].tolist() == right
    # 18 tokens of the text, from the prompt's last one on, and at most the guesses beyond its end
    assert 18 <= report.tokens_steered[LAYER] <= 18 + 3
    with pytest.raises(ValueError, match="prompt_lengths="), ot.steering(model, caa, T=3.0):
        model._module.generate(IDS, **guess)
    method = Asking(WIDTH)
    with ot.steering(model, method, T=3.0, prompt_lengths=5):
        asked = model._module.generate(IDS, **guess)
    with ot.steering(model, method, T=3.0):
        assert torch.equal(asked, model._module.generate(IDS, **{**OPTIONS, "max_new_tokens": 18}))


def test_a_bridge_whose_weights_are_offloaded_is_read_and_steered(caa):
    plain, bridge = (made.as_bridge(tiny("llama"), tokenizer()) for _ in range(2))
    accelerate.cpu_offload(bridge.original_model, execution_device="cpu")
    assert next(bridge.parameters()).is_meta
    hf = tiny("llama")
    out = ot.generate(bridge, IDS, caa, T=4.0, max_new_tokens=NEW, stop_at_eos=False)
    assert out.tokens[0, 5:].tolist() == hooked(hf, hf.model.layers[LAYER], caa.barrier.weight, RULES["decoding"], 4.0)
    acts, right = (ot.collect(each, IDS, IDS.flip(1), layer=LAYER) for each in (bridge, plain))
    assert torch.equal(acts.desired, right.desired) and acts.processing == "raw"


def test_a_model_without_weights_is_told():
    with torch.device("meta"):
        hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GATED))
    from odesteer_tl.backends.offloaded_weights import weight_on_cpu

    with pytest.raises(ValueError, match="has no numbers: the model was made without its weights"):
        weight_on_cpu(hf, hf.lm_head.weight)


def test_a_bridge_of_an_encoder_decoder_is_refused_in_its_own_words(caa):
    class EncoderDecoder:
        cfg = run_with_cache = original_model = None

    with pytest.raises(ValueError, match=r"encoder-decoder.*blocks=\"model\.decoder\.layers\""):
        ot.collect(EncoderDecoder(), ["a"], ["b"], layer=1)


def test_a_bridge_decodes_with_its_cache_as_without_it():
    """TransformerLens up to 4.3 loses the cache of transformers from 5.24 on, whose argument has another name."""
    for family in ("llama", "gpt2", "gpt_neox", "opt", "gemma2"):
        bridge = made.as_bridge(tiny(family), tokenizer())
        logits = [
            torch.stack(
                bridge.generate(
                    IDS, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens",
                    output_logits=True, use_past_kv_cache=cache,
                ).logits
            )
            for cache in (True, False)
        ]  # fmt: skip
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_a_bridge_of_the_users_is_right_inside_our_calls_and_told_of_outside(caa):
    from transformer_lens.model_bridge import TransformerBridge

    from odesteer_tl.backends.transformer_lens import cache_names

    hf = tiny("llama")
    bridge = TransformerBridge.boot_transformers(
        "tiny", hf_model=copy.deepcopy(hf), tokenizer=tokenizer(), device="cpu", dtype=torch.float32
    )
    bridge.generate(IDS, max_new_tokens=2, verbose=False)  # a bridge makes hooks of its own as it runs
    hooks = sum(len(m._forward_pre_hooks) for m in bridge.modules())
    options = {"T": 4.0, "max_new_tokens": NEW, "stop_at_eos": False}
    if cache_names._needed(bridge):
        with pytest.warns(UserWarning, match=r"loses the KV cache.*ot\.load_model"):
            out = ot.generate(bridge, IDS, caa, **options)
    else:
        out = ot.generate(bridge, IDS, caa, **options)
    assert out.tokens[0, 5:].tolist() == hooked(hf, hf.model.layers[LAYER], caa.barrier.weight, RULES["decoding"], 4.0)
    assert sum(len(m._forward_pre_hooks) for m in bridge.modules()) == hooks


def test_renaming_needs_one_cache_under_an_old_name():
    from odesteer_tl.backends.transformer_lens.cache_names import _to_new, _to_old

    cache, module = object(), nn.Identity()
    assert _to_new(module, (), {"past_key_values": cache, "use_cache": True}) == (
        (),
        {"use_cache": True, "cache": cache},
    )
    assert _to_new(module, (), {"cache": cache, "past_key_values": cache}) == ((), {"cache": cache})
    assert _to_new(module, (), {"cache": object(), "past_key_values": cache}) is None
    assert _to_new(module, (), {"cache": cache}) is None and _to_new(module, (), {}) is None
    assert _to_old(module, (), {"cache": cache})[1] == {"cache": cache, "past_key_values": cache}
    assert (
        _to_old(module, (), {"cache": None}) is None and _to_old(module, (), {"layer_past": cache, "cache": 1}) is None
    )
