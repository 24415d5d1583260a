"""The plain hook: stateless, differentiable, and what it picks out of the chunk it sees."""

import pytest
import torch
from models import KINDS, hugging_face, load
from oracle import LAYER, Stub, T, block
from torch.func import grad, jvp, vmap

import odesteer_tl as ot
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.sites import Site

NAME = f"blocks.{LAYER}.hook_resid_post"
TOKENS = torch.tensor([[1, 5, 6, 7], [1, 8, 4, 9]])
METHOD = Stub(32)


@pytest.fixture(scope="module", params=[(kind, family) for kind in KINDS for family in ("llama", "gpt2")], ids="-".join)
def model(request):
    return load(*request.param)


@pytest.mark.parametrize(
    "positions, chosen",
    [
        ("last", [(0, 3), (1, 3)]),
        ("all", [(row, pos) for row in range(2) for pos in range(4)]),
        (slice(-2, None), [(0, 2), (0, 3), (1, 2), (1, 3)]),
        (torch.tensor([True, False, False, True]), [(0, 0), (0, 3), (1, 0), (1, 3)]),
        (torch.tensor([[True, False, False, False], [False, False, True, False]]), [(0, 0), (1, 2)]),
    ],
    ids=["last", "all", "slice", "mask", "mask_per_row"],
)
def test_it_steers_the_chosen_columns_and_nothing_else(positions, chosen):
    a = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    expected = a.clone()
    for where in chosen:
        expected[where] += T * METHOD.push(a[where])
    found = ot.steering_hook(METHOD, T, positions=positions)(a, hook=None)
    torch.testing.assert_close(found, expected)
    half = ot.steering_hook(METHOD, T, positions=positions)(a.bfloat16())
    assert half.dtype == torch.bfloat16


def test_one_strength_per_row_reaches_its_row():
    a = torch.randn(2, 4, 32)
    found = ot.steering_hook(METHOD, torch.tensor([0.0, 2.0]), positions="all")(a)
    assert torch.equal(found[0], a[0])
    torch.testing.assert_close(found[1], a[1] + 2.0 * METHOD.push(a[1]))


def test_on_a_prompt_it_is_what_steering_does(model):
    with ot.steering(model, METHOD, T):
        expected = model(TOKENS)
    found = model.run_with_hooks(TOKENS, fwd_hooks=[(NAME, ot.steering_hook(METHOD, T))])
    assert torch.equal(found, expected)


def logit(model, block):
    """A shift v of the residual stream before layer 1 -> a logit, steered at layer 1 by a hook or by a block."""

    def of(v):
        shift = (f"blocks.{LAYER}.hook_resid_pre", lambda value, hook: value + v)
        if not block:
            steer = (NAME, ot.steering_hook(METHOD, T))
            return model.run_with_hooks(TOKENS, fwd_hooks=[shift, steer])[0, -1, 5]
        with ot.steering(model, METHOD, T):
            return model.run_with_hooks(TOKENS, fwd_hooks=[shift])[0, -1, 5]

    return of


def oracle_gradient(family):
    """The derivative of that logit, by ordinary backpropagation through the Hugging Face model and torch hooks."""
    v = torch.zeros(32, requires_grad=True)

    def steer(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        last = value[:, -1:]
        return torch.cat([value[:, :-1], last + T * METHOD.push(last)], dim=1)

    layer = block(hugging_face(family), LAYER)
    handles = [layer.register_forward_pre_hook(lambda module, args: (args[0] + v, *args[1:]))]
    handles.append(layer.register_forward_hook(steer))
    hugging_face(family)(TOKENS, use_cache=False).logits[0, -1, 5].backward()
    for handle in handles:
        handle.remove()
    hugging_face(family).zero_grad()
    return v.grad


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside_block", [False, True], ids=["hook", "block"])
def test_derivatives_pass_through(kind, family, inside_block):
    of, expected = logit(load(kind, family), inside_block), oracle_gradient(family)
    close = {"rtol": 1e-3, "atol": 1e-4 * expected.abs().max().item()}
    v, w = torch.zeros(32), torch.randn(32, generator=torch.Generator().manual_seed(0))
    leaf = v.clone().requires_grad_()
    of(leaf).backward()
    torch.testing.assert_close(leaf.grad, expected, **close)
    torch.testing.assert_close(grad(of)(v), expected, **close)
    torch.testing.assert_close(jvp(of, (v,), (w,))[1], expected @ w, **close)
    columns = vmap(lambda u: jvp(of, (v,), (u,))[1])(torch.eye(32)[:3])
    torch.testing.assert_close(columns, expected[:3], **close)


def test_a_hook_carries_one_site():
    class Across:
        origin = METHOD.origin

        def edits(self, **strength):
            return [Edit(Site(0), Site(1), lambda read, write, state: write)]

    with pytest.raises(ValueError, match="edits one site"):
        ot.steering_hook(Across(), 1.0)
