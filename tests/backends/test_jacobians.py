"""Laws of linearising: Jacobians are those of the whole model by finite differences, and nothing is left behind."""

import copy
from functools import cache

import pytest
import torch
from models import EVERY, hugging_face, load
from oracle import block
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from odesteer_tl.backends.jacobians import BlockMap, Linearised, block_maps, mean_jacobians

RANDOM = ["llama", "gpt2"]
PROMPTS = [torch.tensor([row]) for row in ([1, 5, 6, 7, 9], [1, 8, 4], [3])]


@pytest.fixture(scope="module", autouse=True)
def norms_in_float64():
    """Hugging Face's RMSNorm computes in float32 whatever the model is in, which no finite difference survives."""

    def forward(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", forward)
        yield


@pytest.fixture(scope="module", params=[(kind, family) for kind in EVERY for family in RANDOM], ids="-".join)
def loaded(request):
    return *request.param, load(*request.param, dtype=torch.float64)


def whole(family, layer, prompt):
    """What leaves a layer at the last token, as a function of what enters it there: all of the Hugging Face model
    runs, in float64, under torch hooks. And where it stands."""
    hf, seen = copy.deepcopy(hugging_face(family)).double(), {}

    def function(last):
        def put(module, args):
            seen["at"] = args[0][0, -1].detach()
            return (torch.cat([args[0][:, :-1], last.reshape(1, 1, -1)], 1) if last is not None else args[0], *args[1:])

        def read(module, args, out):
            seen["out"] = (out[0] if isinstance(out, tuple) else out)[0, -1]

        handles = block(hf, layer).register_forward_pre_hook(put), block(hf, layer).register_forward_hook(read)
        hf(prompt, use_cache=False)
        for handle in handles:
            handle.remove()
        return seen["out"]

    with torch.no_grad():
        function(None)
    return function, seen["at"]


def rounding(loaded):
    """Where attention is eager, as a bridge's is on 4.x, Hugging Face's Llama takes its softmax in float32."""
    return 1e-5 if loaded[:2] == ("bridge", "llama") else 1e-10


@cache
def oracle(family, layer):
    """The mean Jacobian [d_model, d_model] by finite differences, and by autograd; it is the same for all libraries."""
    expected, exact = torch.zeros(2, 32, 32, dtype=torch.float64)
    for prompt in PROMPTS:
        function, at = whole(family, layer, prompt)
        exact += torch.autograd.functional.jacobian(function, at) / len(PROMPTS)
        with torch.no_grad():
            steps = 1e-5 * torch.eye(32, dtype=torch.float64)
            columns = [(function(at + step) - function(at - step)) / 2e-5 for step in steps]
        expected += torch.stack(columns, dim=1) / len(PROMPTS)
    return expected, exact


@pytest.mark.parametrize("layer", [0, 2])
def test_jacobians_are_finite_differences_of_the_whole_model(loaded, layer):
    _, family, model = loaded
    (found,) = mean_jacobians(model, PROMPTS, [layer], chunk=5)
    assert found.dtype == torch.float64
    expected, exact = oracle(family, layer)
    off = max(1e-10, rounding(loaded))
    assert (found - expected).abs().max() <= max(1e-7, off) and (found - exact).abs().max() <= off
    assert (expected - torch.eye(32)).abs().max() > 0.1 and (expected - expected.T).abs().max() > 0.1


def test_chunks_do_not_matter_and_layers_come_in_the_order_asked(loaded):
    _, _, model = loaded
    last, first = mean_jacobians(model, PROMPTS[:2], [2, 0], chunk=64)
    by_ones = torch.stack(list(mean_jacobians(model, PROMPTS[:2], [0, 2], chunk=1)))
    torch.testing.assert_close(by_ones, torch.stack([first, last]), rtol=1e-10, atol=1e-12)


def test_products_are_those_of_the_matrix(loaded):
    _, _, model = loaded
    off = rounding(loaded)
    rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    linear = Linearised(model, PROMPTS, [1, 2], chunk=3)
    for number, matrix in enumerate(mean_jacobians(model, PROMPTS, [1, 2])):
        torch.testing.assert_close(linear.jvp(number, rows), rows @ matrix.T, rtol=off, atol=10 * off)
        torch.testing.assert_close(linear.vjp(number, rows), rows @ matrix, rtol=off, atol=10 * off)


def test_a_block_map_is_the_block(loaded):
    _, family, model = loaded
    for layer, found in enumerate(block_maps(model, PROMPTS[0], [0, 1, 2])):
        function, at = whole(family, layer, PROMPTS[0])
        rows = at + 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        off = rounding(loaded)
        torch.testing.assert_close(found.at, at, rtol=off, atol=10 * off)
        with torch.no_grad():
            for _ in range(2):  # what is kept between calls would show in the second
                expected = torch.stack([function(row) for row in rows])
                torch.testing.assert_close(found(rows), expected, rtol=off, atol=10 * off)


def state(model):
    inner = getattr(model, "_module", model)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in inner.modules()]
    return hooks, [p.grad for p in inner.parameters()], [p.requires_grad for p in inner.parameters()]


@pytest.mark.parametrize("where", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_left_on_the_model_and_grad_modes_do_not_matter(loaded, where):
    _, _, model = loaded
    before = state(model)
    (expected,) = mean_jacobians(model, PROMPTS[:1], [1])
    with where():
        (found,) = mean_jacobians(model, PROMPTS[:1], [1])
        grad = torch.is_grad_enabled()
        Linearised(model, PROMPTS[:1], [1]).jvp(0, torch.ones(1, 32, dtype=torch.float64))
        assert torch.is_grad_enabled() == grad
    assert torch.equal(found, expected)
    assert state(model) == before and not found.requires_grad


def test_nothing_is_left_after_an_error(loaded):
    kind, _, model = loaded
    before = state(model)
    inner = getattr(model, "_module", model)

    def fail(module, args, kwargs):
        raise RuntimeError("mine")

    later = block(inner, 2) if kind in ("nnsight", "huggingface") else model.blocks[2]
    stop = later.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="mine"):
        next(mean_jacobians(model, PROMPTS, [1]))
    stop.remove()
    assert state(model) == before


def test_a_float32_model_is_summed_in_float32():
    (found,) = mean_jacobians(load("nnsight", "gpt2", dtype=torch.bfloat16), PROMPTS[:1], [1])
    assert found.dtype == torch.float32


def test_blocks_that_return_tuples_or_keep_a_cache():
    class Block(torch.nn.Module):
        def forward(self, hidden_states, past_key_values=None, use_cache=True, *, scale, bias, gate):
            assert past_key_values is None and use_cache is False and scale.shape == (len(hidden_states), 5, 1)
            assert bias.shape == (4,) and gate.shape == (1,)
            return hidden_states**2 * scale * gate + bias + hidden_states[:, :1], "weights"

    class Cache:
        def get_seq_length(self):
            return 5

    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    given = {"past_key_values": Cache(), "use_cache": True, "scale": torch.full((1, 5, 1), 3.0)}
    given |= {"bias": torch.ones(4), "gate": torch.ones(1)}
    found = BlockMap(Block(), ((), {"hidden_states": x, **given}))
    u = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(found.vjp(u), torch.diag(6 * x[0, -1]))
    torch.testing.assert_close(found.jvp(u), torch.diag(6 * x[0, -1]))


def test_several_prompts_at_once_are_refused():
    with pytest.raises(ValueError, match="one prompt at a time"):
        block_maps(load("nnsight", "gpt2"), torch.ones(2, 3, dtype=torch.long), [0])
