"""Where a block's output lives, and in which type, is where and how it is steered."""

import copy
import warnings

import nnsight
import pytest
import torch
from models import hugging_face, tokenizer
from oracle import PROMPTS, TOLERANCE, Stub, T, logits, padded, steered_positions

import odesteer_tl as ot
from odesteer_tl.parity.models import saved
from odesteer_tl.parity.oracle import activations

ROWS = PROMPTS["batch"]


def inputs():
    tokens, mask = padded(ROWS, 0)
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.fixture
def spread(tmp_path):
    """A model whose later layers lie on disk: their parameters are on the meta device, their outputs on the CPU."""
    place = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    place |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nnsight.TransformersModel(
            saved("llama"), tokenizer=tokenizer(), task="text-generation", dispatch=True, device_map=place,
            offload_folder=str(tmp_path),
        )  # fmt: skip


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("way", ["steering", "intervene"])
def test_a_model_spread_over_devices(spread, layer, way):
    assert spread.model.layers[1]._module.self_attn.q_proj.weight.device.type == "meta"
    method, hf = Stub(32, layer=layer), hugging_face("llama")
    if way == "steering":
        with ot.steering(spread, method, T, positions="all"), spread.trace(inputs()):
            found = nnsight.save(spread.lm_head.output)
    else:
        with spread.trace(inputs()):
            ot.intervene(spread, method, T, positions="all")
            found = nnsight.save(spread.lm_head.output)
    for row, mine in zip(ROWS, found, strict=True):
        expected = logits(hf, row, steered_positions("all", len(row), len(row)), method, T)
        assert (mine[-len(row) :] - expected).abs().max() <= TOLERANCE
    acts = ot.collect(spread, ot.Tokenised(*padded(ROWS, 0)), "the film", layer=layer)
    assert acts.desired.device.type == "cpu" and acts.processing == "raw"
    assert ot.generate(spread, "the film", method, T, max_new_tokens=3).report.tokens_steered == {layer: 3}


@pytest.mark.parametrize("way", ["steering", "intervene"])
def test_numbers_go_to_where_the_activation_is(way):
    """A model without any numbers: whatever stays on the CPU meets a tensor of the meta device and fails."""
    with torch.device("meta"):
        model = nnsight.NNsight(copy.deepcopy(hugging_face("llama")).to("meta"))
    acts = activations("llama")
    for method in (ot.ITI.fit(acts), ot.CAA.fit(acts), ot.ODESteer.fit(acts, features=ot.PolynomialSketch(100))):
        tokens = torch.ones(2, 4, dtype=torch.long, device="meta")
        if way == "steering":
            with ot.steering(model, method, torch.tensor([1.0, 2.0])), model.trace(tokens, use_cache=True):
                found = nnsight.save(model.lm_head.output)
        else:
            with model.trace(tokens, use_cache=True):
                ot.intervene(model, method, torch.tensor([1.0, 2.0]))
                found = nnsight.save(model.lm_head.output)
        assert found.device.type == "meta" and found.shape == (2, 4, 24)


def test_every_layer_may_have_a_type_of_its_own():
    """float32, bfloat16 and float16 blocks in one model: each is steered in float32 and gives back its own type."""
    hf, method = copy.deepcopy(hugging_face("llama")), ot.ODESteer.fit(activations("llama"))
    types = (torch.float32, torch.bfloat16, torch.float16)
    for block, dtype in zip(hf.model.layers, types, strict=True):

        def cast(module, args, kwargs, dtype=dtype):
            def to(value):
                if isinstance(value, tuple):
                    return tuple(map(to, value))
                return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

            return to(args), {name: to(value) for name, value in kwargs.items()}

        block.to(dtype).register_forward_pre_hook(cast, with_kwargs=True)
    hf.model.norm.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    model = nnsight.TransformersModel(hf, tokenizer=tokenizer(), task="text-generation")
    for layer, (block, dtype) in enumerate(zip(model.model.layers, types, strict=True)):
        with model.trace("the film"):
            plain = nnsight.save(block.output)
        with ot.steering(model, method, relative_T=0.5, layer=layer), model.trace("the film"):
            steered = nnsight.save(block.output)
        assert steered.dtype == plain.dtype == dtype
        assert torch.equal(steered[:, -1], method.steer(plain[:, -1], relative_T=0.5))
        assert torch.equal(steered[:, 0], plain[:, 0]) and not torch.equal(steered[:, -1], plain[:, -1])
