"""Plain Hugging Face models: what is read, steered and generated is what torch hooks written out here do."""

import copy
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, tiny
from instances import without_shape_checks
from models import hugging_face, load, tokenizer
from oracle import (
    LAYER,
    PROMPTS,
    STEPS,
    Across,
    Stub,
    T,
    block,
    deviations,
    generate,
    logits,
    padded,
    steered_positions,
)

import odesteer_tl as ot
from odesteer_tl.backends import token_losses
from odesteer_tl.backends.base import Backend, backend_of
from odesteer_tl.parity.models import as_nnsight, saved
from odesteer_tl.parity.oracle import texts
from odesteer_tl.portable.sites import Site

TEXTS, OTHERS = ["the film is good", "a plot", "we saw it and it was great"], ["dull", "slow and bad", "the plot is"]
METHOD = Stub(32)
FAMILIES = ["llama", "gpt2"]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request):
    return request.param, load("huggingface", request.param)


@pytest.fixture
def model(loaded):
    """A model on which nothing may be left."""
    _, model = loaded
    model(torch.tensor([[1, 5]]), output_hidden_states=True)  # transformers puts hooks of its own there
    before = state(model)
    yield loaded
    assert state(model) == before


def state(model):
    """All hooks, and the forwards and settings that stand on the modules themselves."""
    kinds = [name for name in vars(model) if name.endswith("_hooks") or "_hooks_" in name]
    return [
        ([list(getattr(each, kind)) for kind in kinds], vars(each).get("forward"), vars(each).get("generation_config"))
        for each in model.modules()
    ]


def ids(model, text):
    return model.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids


@pytest.mark.parametrize("position", ["last", "mean", "all", 0])
def test_what_is_collected_are_the_hidden_states(model, position):
    """The first of them is what enters the first block. The last is normed, so that block is read in another test."""
    family, model = model
    acts = ot.collect_layers(model, TEXTS, OTHERS, [1, 0], position=position, batch_size=2)
    entered = ot.collect(model, TEXTS, OTHERS, 2, site="resid_pre", position=position)
    pick = {"last": lambda a: a[-1:], "mean": lambda a: a.mean(0, keepdim=True), "all": lambda a: a, 0: lambda a: a[:1]}
    with torch.no_grad():
        states = [hugging_face(family)(ids(model, text), output_hidden_states=True).hidden_states for text in TEXTS]
    for found, number in ((acts[0], 2), (acts[1], 1), (entered, 2)):
        right = torch.cat([pick[position](each[number][0]) for each in states])
        torch.testing.assert_close(found.desired, right, rtol=1e-5, atol=1e-5)  # float32, padded against alone
    assert acts[0].hook_name == "blocks.1.hook_resid_post" and acts[0].processing == "raw"


def test_the_last_layer_and_z_are_read_and_no_later_block_runs(model):
    family, model = model
    seen, ran = {}, []
    hf = hugging_face(family)
    inner = block(hf, 1).self_attn.o_proj if family == "llama" else block(hf, 1).attn.c_proj
    handles = [
        block(hf, 2).register_forward_hook(
            lambda m, a, out: seen.update(last=out[0] if isinstance(out, tuple) else out)
        ),
        inner.register_forward_pre_hook(lambda m, args: seen.update(z=args[0])),
    ]
    with torch.no_grad():
        hf(ids(model, TEXTS[0]))
    for handle in handles:
        handle.remove()
    for layer, site, name in ((2, "resid_post", "last"), (1, "z", "z")):
        acts = ot.collect(model, TEXTS[:1], OTHERS[:1], layer, site=site, position="all")
        torch.testing.assert_close(acts.desired, seen[name][0], rtol=0, atol=1e-5)
    handle = block(model, 2).register_forward_hook(lambda *_: ran.append(1))
    ot.collect(model, TEXTS, OTHERS, 1)
    handle.remove()
    assert not ran
    with pytest.raises(ValueError, match=r"resid_pre, z and resid_post, got mlp_out.*ot\.load_model"):
        ot.collect(model, TEXTS, OTHERS, 1, site="mlp_out")


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
@pytest.mark.parametrize("rule", ["decoding", "prompt", "generated", slice(1, 6, 2)], ids=str)
def test_generate_is_the_oracles(model, rule, cache):
    family, model = model
    rows = PROMPTS["batch"]
    tokens = ot.Tokenised(padded(rows, 0)[0], padded(rows, 0)[1].bool())
    strengths = torch.tensor([3.0, 2.0, -3.0])
    options = {"positions": rule, "max_new_tokens": STEPS, "use_past_kv_cache": cache, "stop_at_eos": False}
    out = ot.generate(model, tokens, METHOD, T=strengths, **options)
    alone = ot.generate(model, tokens, METHOD, T=strengths, batch_size=1, **options)
    assert torch.equal(out.tokens, alone.tokens)
    for row, strength, mask, made in zip(rows, strengths.tolist(), out.mask, out.tokens, strict=True):
        whole = list(row)
        for _ in range(STEPS):
            where = steered_positions(rule, len(row), len(whole))
            whole.append(int(logits(hugging_face(family), whole, where, METHOD, strength)[-1].argmax()))
        assert made[mask].tolist() == whole
    count = sum(len(steered_positions(rule, len(row), len(row) + STEPS - 1)) for row in rows)
    assert out.report.tokens_steered == {LAYER: count}


def test_texts_beams_and_sampling_are_those_of_its_own_generate(model):
    _, model = model
    own = model.tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    kinds = (
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "top_k": 0, "temperature": 2.0},
    )
    mine = {}, {"num_beams": 3}, {"temperature": 2.0, "seed": 3}
    for theirs, options in zip(kinds, mine, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            right = model.generate(**{k: own[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=6, **theirs)
        out = ot.generate(model, TEXTS, max_new_tokens=6, **options)
        assert torch.equal(out.tokens, right)
        assert out.texts == model.tokenizer.batch_decode(right, skip_special_tokens=True)
    losses, counted = token_losses(model, out)
    row = out.tokens[1][out.mask[1]].tolist()
    with torch.no_grad():
        each = model(torch.tensor([row])).logits[0].log_softmax(-1)[range(len(row) - 1), row[1:]]
    torch.testing.assert_close(-losses[1][counted[1]], each[int(out.prompt_lengths[1]) - 1 :], rtol=0, atol=1e-5)


def test_a_cross_site_edit_and_hidden_states_in_the_block_are_steered(model):
    family, model = model
    row = torch.tensor([[1, 5, 6, 7]])
    method = Across(Site(0, "resid_post"), Site(2, "resid_pre"))
    seen = {}

    def moved(module, args, kwargs):
        return (args[0] + T * method.stub.push(seen["read"]), *args[1:]), kwargs

    hf = hugging_face(family)
    handles = [
        block(hf, 0).register_forward_hook(
            lambda m, a, out: seen.update(read=out[0] if isinstance(out, tuple) else out)
        ),
        block(hf, 2).register_forward_pre_hook(moved, with_kwargs=True),
    ]
    with torch.no_grad():
        right = hf(row).logits
        for handle in handles:
            handle.remove()
        with ot.steering(model, method, T, positions="all"):
            torch.testing.assert_close(model(row).logits, right, rtol=0, atol=1e-4)
        plain = model(row, output_hidden_states=True).hidden_states
        with ot.steering(model, METHOD, T, positions="all"):
            steered = model(row, output_hidden_states=True).hidden_states
    assert torch.equal(plain[LAYER], steered[LAYER])
    torch.testing.assert_close(steered[LAYER + 1], plain[LAYER + 1] + T * METHOD.push(plain[LAYER + 1]))


def test_hooks_of_the_user_and_blocks_around_act_in_order(model):
    """The user's hooks, made before or inside, see what all blocks of steering have made, the outer one first."""
    _, model = model
    row, orders = torch.tensor([[1, 5, 6]]), []

    def see(module, args, out):
        orders.append((out[0] if isinstance(out, tuple) else out).detach().clone())

    with torch.no_grad():
        handle = block(model, LAYER).register_forward_hook(see)
        model(row)
        with (
            ot.steering(model, METHOD, 1.0, positions="all"),
            ot.steering(model, Stub(32, seed=1), 2.0, positions="all"),
        ):
            model(row)
        handle.remove()
    once = orders[0] + METHOD.push(orders[0])
    torch.testing.assert_close(orders[1], once + 2.0 * Stub(32, seed=1).push(once))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(model, error):
    """The fixture compares."""
    family, model = model

    def fail(module, args):
        raise error

    handle = block(model, 2).register_forward_pre_hook(fail)
    for way in (
        lambda: ot.generate(model, torch.tensor([[1, 5]]), METHOD, T=1.0),
        lambda: ot.collect(model, TEXTS, OTHERS, 2),
    ):
        with pytest.raises(error):
            way()
    handle.remove()
    new, found = generate(model, "huggingface", PROMPTS["batch"])
    for off, _ in deviations(family, PROMPTS["batch"], new, found, "none", METHOD, [0.0] * 3):
        assert off <= 1e-4


def test_settings_of_a_checkpoint_do_not_act_and_come_back(loaded):
    _, model = loaded
    prompt = torch.tensor([[1, 5, 6, 7]])
    right, own = ot.generate(model, prompt, max_new_tokens=5, stop_at_eos=False), model.generation_config
    banned = [[int(token)] for token in right.tokens[0, 4:]]
    model.generation_config = transformers.GenerationConfig(repetition_penalty=9.0, num_beams=2, bad_words_ids=banned)
    mine = model.generation_config
    again = ot.generate(model, prompt, max_new_tokens=5, stop_at_eos=False)
    assert torch.equal(right.tokens, again.tokens) and model.generation_config is mine
    model.generation_config = own


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("llama", "gpt2")])
def test_blocks_of_each_architecture_are_found(name):
    """One vector added after a block, against a torch hook at the path that is written out in the table."""
    hf, vector = tiny(name), METHOD.direction
    model, path, row = copy.deepcopy(hf), ARCHITECTURES[name][2], torch.tensor([[1, 5, 6, 7]])
    caa = ot.CAA.fit(ot.ContrastiveActivations(vector.expand(2, -1), torch.zeros(2, 32), layer=1, processing="raw"))
    handle = hf.get_submodule(f"{path}.1").register_forward_hook(
        lambda m, a, out: (out[0] + 2 * vector, *out[1:]) if isinstance(out, tuple) else out + 2 * vector
    )
    with torch.no_grad():
        right = hf(row).logits
        handle.remove()
        with ot.steering(model, caa, T=2.0, positions="all"):
            found = model(row).logits
        plain = model(row).logits
    torch.testing.assert_close(found, right, rtol=0, atol=1e-5)
    assert (found - plain).abs().max() > 0.1
    assert ot.collect(model, row, row, 1, site="z").desired.shape[0] == 1


def adapted(family="llama"):
    """A model in a LoRA adapter that does something, and the model that the two make together."""
    config = peft.LoraConfig(target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(copy.deepcopy(hugging_face(family)), config)
    return model.eval(), copy.deepcopy(model).merge_and_unload()


def test_an_adapted_model_is_the_merged_one():
    tokens = torch.tensor([[1, 5, 6, 7]])
    model, merged = adapted()
    for site in ("z", "resid_post"):
        found, right = (ot.collect(each, *texts(5), LAYER, site=site) for each in (model, merged))
        torch.testing.assert_close(found.desired, right.desired, rtol=0, atol=1e-4)
    out, same = (ot.generate(each, tokens, METHOD, T=T, max_new_tokens=6) for each in (model, merged))
    plain = ot.generate(hugging_face("llama"), tokens, METHOD, T=T, max_new_tokens=6)
    assert torch.equal(out.tokens, same.tokens) and not torch.equal(out.tokens, plain.tokens)
    assert out.report.tokens_steered == same.report.tokens_steered
    assert "generation_config" not in vars(model)
    with ot.steering(model.get_base_model(), METHOD, T), ThreadPoolExecutor(1) as pool:  # it is steered as well
        model(tokens)
        with pytest.raises(RuntimeError, match="Another thread has a block"):
            pool.submit(ot.collect, model, tokens, tokens, LAYER).result()
    prompted = peft.get_peft_model(
        copy.deepcopy(hugging_face("llama")), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="its own tokens before each text"), ot.steering(prompted, METHOD, T):
        pass


class Quantised(torch.nn.Module):
    """A linear map in 8 bits."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x):
        return x @ (self.weight * self.scale).T


def test_a_quantised_model_is_the_one_with_its_weights():
    quantised, same = copy.deepcopy(hugging_face("llama")), copy.deepcopy(hugging_face("llama"))
    for name, module in list(same.named_modules()):
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            inner = Quantised(module)
            quantised.set_submodule(name, inner)
            module.weight.data = inner.weight * inner.scale
    tokens, acts = (
        torch.tensor([[1, 5, 6, 7]]),
        [ot.collect(each, *texts(20), LAYER, site="z") for each in (quantised, same)],
    )
    torch.testing.assert_close(acts[0].desired, acts[1].desired, rtol=0, atol=1e-4)
    method = ot.CAA.fit(acts[0])
    found, right = (ot.generate(each, tokens, method, T=4.0, max_new_tokens=6).tokens for each in (quantised, same))
    assert torch.equal(found, right)
    assert not torch.equal(found, ot.generate(quantised, tokens, max_new_tokens=6).tokens)
    with ot.steering(quantised, METHOD, T), ot.steering(same, METHOD, T), torch.no_grad():
        torch.testing.assert_close(quantised(tokens).logits, same(tokens).logits, rtol=0, atol=1e-4)


def test_a_method_fitted_on_one_library_steers_on_the_others(tmp_path):
    bridge, plain = load("bridge", "llama"), load("huggingface", "llama")
    method = ot.ODESteer.fit(ot.collect(bridge, *texts(40), LAYER))
    ot.save(method, tmp_path / "method")
    again, rows = ot.load(tmp_path / "method"), PROMPTS["batch"]
    found = {}
    for kind, model in (("huggingface", plain), ("nnsight", as_nnsight(hugging_face("llama"), tokenizer()))):
        with ot.steering(model, again, relative_T=0.5):
            found[kind] = generate(model, kind, rows)
    assert torch.equal(found["huggingface"][0], found["nnsight"][0])
    torch.testing.assert_close(found["huggingface"][1], found["nnsight"][1], rtol=0, atol=1e-5)
    acts = ot.collect(plain, *texts(40), LAYER)
    torch.testing.assert_close(acts.desired, ot.collect(bridge, *texts(40), LAYER).desired, rtol=0, atol=1e-4)


def test_it_is_loaded_by_name_with_its_tokenizer():
    model = ot.load_model(saved("llama"), library="huggingface")
    assert type(model).__name__ == "LlamaForCausalLM" and not model.training
    acts = ot.collect(model, TEXTS, OTHERS, 1)
    assert acts.model_name == saved("llama") and acts.desired.shape == (3, 32)
    with pytest.raises(ValueError, match="transformer_lens, nnsight or huggingface, got 'jax'"), without_shape_checks():
        ot.load_model(saved("llama"), library="jax")


def test_a_tokenizer_is_found_by_the_models_name_or_asked_for():
    model = transformers.AutoModelForCausalLM.from_pretrained(saved("llama"))
    found = ot.generate(model, TEXTS, max_new_tokens=2)
    assert found.texts[0].startswith("thefilmisgood") and not hasattr(model, "tokenizer")
    nameless = copy.deepcopy(hugging_face("llama"))
    with pytest.raises(
        ValueError, match=r"no tokenizer, and the model has no name.*model\.tokenizer = .*AutoTokenizer"
    ):
        ot.collect(nameless, TEXTS, OTHERS, 1)
    assert ot.generate(nameless, torch.tensor([[1, 5]]), METHOD, T=T, max_new_tokens=2).texts == []
    gone = copy.deepcopy(hugging_face("llama"))
    gone.config.name_or_path = "no/such-model"
    with pytest.raises(ValueError, match=r"none is found under the model's name, 'no/such-model' \("):
        ot.collect(gone, TEXTS, OTHERS, 1)
    gone.tokenizer = tokenizer()
    assert torch.equal(ot.collect(gone, TEXTS, OTHERS, 1).desired, ot.collect(model, TEXTS, OTHERS, 1).desired)


def test_what_cannot_be_is_refused_in_words(loaded):
    _, model = loaded
    with pytest.raises(ValueError, match=r"remote=True needs an nnsight model.*runs on this machine"):
        ot.collect(model, TEXTS, OTHERS, 1, remote=True)
    with pytest.raises(ValueError, match=r"blocks='elsewhere' leads nowhere.*Pass their list: blocks="):
        ot.collect(model, TEXTS, OTHERS, 1, blocks="elsewhere")
    with pytest.raises(ValueError, match=r"does not generate.*AutoModelForCausalLM"):
        ot.generate(model.base_model, torch.tensor([[1, 5]]), METHOD, T=T)
    with pytest.raises(ValueError, match=r"or a Hugging Face model .*got Linear"):
        ot.collect(torch.nn.Linear(2, 2), TEXTS, OTHERS, 1)
    with pytest.raises(ValueError, match=r"works inside a trace of an nnsight model.*ot\.steering"):
        ot.intervene(model, METHOD, 1.0)
    handle = block(model, 1).register_forward_hook(ot.steering_hook(METHOD, 1.0))
    with pytest.raises(ValueError, match=r"a hook for TransformerLens.*ot\.steering\(model, method, T\)"):
        model(torch.tensor([[1, 5]]))
    handle.remove()
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 24}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    with pytest.raises(ValueError, match=r"has an encoder, so its decoder.*blocks="):
        ot.collect(t5, torch.tensor([[1, 5]]), torch.tensor([[1, 6]]), 1, blocks="decoder.block")


def test_dropout_in_training_is_told_of():
    model = copy.deepcopy(hugging_face("gpt2")).train()
    with pytest.warns(UserWarning, match=r"dropout .* call model\.eval\(\)"):
        ot.collect(model, *texts(4), 1)


@pytest.mark.parametrize("kind", ["bridge", "nnsight", "huggingface"])
def test_each_backend_keeps_the_whole_protocol(kind):
    backend = backend_of(load(kind, "llama"))
    assert isinstance(backend, Backend)
    for name, promised in vars(Backend).items():
        if not name.startswith("_") and callable(promised):
            assert callable(getattr(backend, name)) and promised.__doc__
