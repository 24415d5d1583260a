"""Ctrl-C, exits and collected generators in a steering block: what runs after them in the block is as in a fresh one,
bit for bit, and no hook stays behind."""

import copy
import gc
import warnings
from functools import cache

import pytest
import torch
from models import EVERY, hooks_of, load
from oracle import LAYER, PROMPTS, Asking, Stub, T, generate

import odesteer_tl as ot
from odesteer_tl.backends.model_info import modules_of
from odesteer_tl.parity.table import parity_rows

NAMES = ["CAA", "ODESteer", "TruthFlow", "A-LQR", "S-PID", "ITI, heads", "Asking"]
ROWS = PROMPTS["batch"]
TOKENS = torch.tensor([[1, 5, 6, 7]])


@cache
def fitted(name):
    return Asking(32) if name == "Asking" else parity_rows()[name]("llama")


@pytest.fixture(scope="module", params=EVERY)
def loaded(request):
    return request.param, load(request.param, "llama")


def only(*kinds):
    """HookedTransformer's passes show no end, and an nnsight model has no hook points."""
    return pytest.mark.parametrize("loaded", [kind for kind in EVERY if kind in kinds], indirect=True)


@pytest.fixture
def model(loaded):
    """A model whose hooks and forwards must be after the test what they were before."""
    _kind, model = loaded
    forward(model)
    before = hooks_of(model)
    yield loaded
    assert hooks_of(model) == before


def forward(model):
    return getattr(model, "_module", model)(TOKENS)


def interrupted(model, kind, error, call, layer, use_cache):
    """A generate of other rows, which ends with an error as block `layer` is called the `call`th time."""
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == call:
            raise error

    handle = modules_of(model)[layer].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(error):
            generate(model, kind, [[1, 9, 9], [1, 4]], use_cache)
    finally:
        handle.remove()
    assert len(calls) == call


@pytest.mark.parametrize("name", NAMES)
def test_the_next_text_is_that_of_a_fresh_block(model, name):
    """Each library meets each method once, with and without a cache in turn, so that of both every two meet."""
    kind, model = model
    use_cache = (EVERY.index(kind) + NAMES.index(name)) % 2 == 0
    method, strength = fitted(name), torch.tensor([1.0, 1.7, -0.5])
    with ot.steering(model, method, strength) as report:
        right, logits = generate(model, kind, ROWS, use_cache)
    cases = [(KeyboardInterrupt, 1, 2), (KeyboardInterrupt, 3, 2), (SystemExit, 2, 0), (GeneratorExit, 2, LAYER)]
    with ot.steering(model, method, 1.5) as same:
        for error, call, layer in cases:
            interrupted(model, kind, error, call, layer, use_cache)
            plain = generate(model, kind, ROWS, use_cache)
    with ot.steering(model, method, 1.5):
        fresh = generate(model, kind, ROWS, use_cache)
    assert all(map(torch.equal, plain, fresh)) and same.tokens_steered != report.tokens_steered
    with ot.steering(model, method, strength):  # a value per row, and rows that are counted
        generate(model, kind, ROWS, use_cache)
        again = generate(model, kind, ROWS, use_cache)
    assert torch.equal(again[0], right) and torch.equal(again[1], logits)


@only("bridge", "nnsight", "huggingface")
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no_cache"])
def test_what_was_broken_off_is_not_continued(model, use_cache):
    """A prompt that is the interrupted one and a token more is a prompt of its own."""
    kind, model = model
    longer, method = [[1, 9, 9, 5]], Stub(32)
    with ot.steering(model, method, T, positions="generated"):
        fresh = generate(model, kind, longer, use_cache)
    with ot.steering(model, method, T, positions="generated"):
        handle = modules_of(model)[2].register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            generate(model, kind, [[1, 9, 9]], use_cache)
        handle.remove()
        found = generate(model, kind, longer, use_cache)
    assert all(map(torch.equal, found, fresh))


@only("bridge")
def test_parts_of_the_model_called_after_an_interrupt_are_refused(model):
    kind, model = model
    with pytest.raises(ValueError, match="outside a forward pass"), ot.steering(model, Stub(32), T):
        interrupted(model, kind, KeyboardInterrupt, 1, 2, True)
        model.hook_dict[f"blocks.{LAYER}.hook_resid_post"](torch.zeros(2, 3, 32))


@only("bridge", "nnsight", "huggingface")
def test_an_interrupt_of_an_inner_pass_leaves_the_outer_one(model):
    """A model that is called anew in the middle of its own pass, and interrupted there."""
    _kind, model = model
    plain, method = forward(model), Stub(32, layer=2)
    with ot.steering(model, method, T):
        right = forward(model)
    inner = []

    def calls_again(module, args):
        if not inner:
            inner.append(1)
            with pytest.raises(KeyboardInterrupt):
                getattr(model, "_module", model)(torch.tensor([[1, 5]]))
        elif len(inner) == 1:
            inner.append(2)
            raise KeyboardInterrupt

    handle = modules_of(model)[0].register_forward_pre_hook(calls_again)
    with ot.steering(model, method, T) as report:
        found = forward(model)
    handle.remove()
    logits = [each if isinstance(each, torch.Tensor) else each.logits for each in (plain, right, found)]
    assert torch.equal(logits[1], logits[2]) and not torch.equal(logits[0], logits[1])
    assert report.tokens_steered == {2: 1} and len(inner) == 2


@pytest.fixture(scope="module")
def quick_to_collect():
    """What lives by now is left out of collections of garbage, each of which would walk over it for 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("end", ["close", "throw", "collect", "cycle"])
def test_a_block_in_a_generator_leaves_nothing_however_it_ends(model, end, quick_to_collect):
    _kind, model = model

    class Holder:
        pass

    def steps(holder):
        with ot.steering(model, Stub(32), T):
            while True:
                yield forward(model)

    for _ in range(3):
        holder = Holder()
        running = steps(holder)
        next(running)
        if end == "close":
            running.close()
        elif end == "throw":
            with pytest.raises(KeyboardInterrupt):
                running.throw(KeyboardInterrupt)
        elif end == "cycle":
            holder.running = running
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del holder, running
            gc.collect()
    # the fixture compares hooks


@only("nnsight", "huggingface")
def test_copies_made_in_a_block_compute_with_their_own_weights(model):
    _, model = model
    inner = getattr(model, "_module", model)
    with ot.steering(model, Stub(32), T):
        steered = inner(TOKENS).logits
        twin = copy.deepcopy(inner)
        twin.lm_head.weight.data.zero_()
        twin.model.embed_tokens.weight.data.zero_()
        assert not twin(TOKENS, output_hidden_states=True).hidden_states[0].any()
    assert not torch.equal(steered, inner(TOKENS).logits)
