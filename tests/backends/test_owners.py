"""Whose a steering block is: other threads and tasks are refused in words, and what they tried changes nothing."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from models import BACKENDS, KINDS, load
from oracle import STEPS, Stub, T, generate
from transformers import TextIteratorStreamer

import odesteer_tl as ot
from odesteer_tl.backends import owners
from odesteer_tl.backends.model_info import modules_of

METHOD, OTHER = Stub(32), Stub(32, layer=0, seed=1)
PROMPT = [[1, 5, 6, 7]]
IDS = torch.tensor(PROMPT)
OPTIONS = {"T": 30.0, "max_new_tokens": STEPS, "stop_at_eos": False}


@pytest.fixture(scope="module", params=BACKENDS)
def loaded(request):
    return request.param, load(request.param, "llama")


def forward(model):
    found = getattr(model, "_module", model)(IDS)
    return found if isinstance(found, torch.Tensor) else found.logits


def told(work):
    """What a thread of its own, which is started now, raised; None where it raised nothing."""
    return started(work)()


def started(work):
    raised = []

    def run():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def ended():
        thread.join(60)
        assert not thread.is_alive()
        return raised[0] if raised else None

    return ended


def ways(model, kind):
    """How others may come to a model."""

    def block():
        with ot.steering(model, OTHER, 1.0):
            forward(model)

    found = [lambda: forward(model), lambda: generate(model, kind, PROMPT), block]
    found.append(lambda: ot.generate(model, IDS, OTHER, T=1.0, max_new_tokens=2))
    return [*found, lambda: ot.generate(model, IDS, max_new_tokens=2), lambda: ot.collect(model, IDS, IDS + 1, layer=1)]


@contextlib.contextmanager
def paused(model, meanwhile):
    """In the third call of a block of the model that this thread makes, `meanwhile` runs."""
    me, calls = threading.get_ident(), []

    def pause(module, args):
        if threading.get_ident() == me:
            calls.append(1)
            if len(calls) == 3:
                meanwhile()

    handle = modules_of(model)[2].register_forward_pre_hook(pause)
    try:
        yield
    finally:
        handle.remove()
    assert len(calls) >= 3


def test_a_thread_that_was_there_before_is_refused_and_the_block_is_unharmed(loaded):
    kind, model = loaded
    plain = forward(model)
    with ot.steering(model, METHOD, T):
        right, steered = generate(model, kind, PROMPT), forward(model)
    go, done, raised = threading.Event(), threading.Event(), []

    def work():
        for way in ways(model, kind):
            assert go.wait(60)
            try:
                way()
                raised.append(None)
            except Exception as error:
                raised.append(error)
        done.set()

    ended = started(work)
    with ot.steering(model, METHOD, T):
        go.set()
        assert done.wait(60)
        found = generate(model, kind, PROMPT)
        assert torch.equal(forward(model), steered) and not torch.equal(plain, steered)
    assert ended() is None and len(raised) == 6
    assert all(
        isinstance(e, RuntimeError) and "`with lock:`" in str(e) and "threading.Lock()" in str(e) for e in raised
    )
    assert all(map(torch.equal, found, right))
    assert told(lambda: torch.testing.assert_close(forward(model), plain, rtol=0, atol=0)) is None


@pytest.mark.parametrize("number", range(6))
def test_a_thread_in_the_middle_of_a_generate_is_refused_and_the_text_is_unharmed(loaded, number):
    kind, model = loaded
    with ot.steering(model, METHOD, T):
        right = generate(model, kind, PROMPT)
    raised, way = [], ways(model, kind)[number]
    with ot.steering(model, METHOD, T) as report:
        with paused(model, lambda: raised.append(told(way))):
            found = generate(model, kind, PROMPT)
    assert isinstance(raised[0], RuntimeError) and all(map(torch.equal, found, right))
    assert report.tokens_steered == {1: STEPS}
    if kind != "nnsight" or number != 1:  # two generates at once of one nnsight model are its own trouble
        whole = ot.generate(model, IDS, METHOD, **OPTIONS)
        with paused(model, lambda: raised.append(told(way))):
            again = ot.generate(model, IDS, METHOD, **OPTIONS)
        assert isinstance(raised[1], RuntimeError) and torch.equal(again.tokens, whole.tokens)


def test_a_part_that_another_thread_calls_in_the_middle_of_a_pass_is_not_steered(loaded):
    kind, model = loaded
    block, value = modules_of(model)[1], []
    handle = block.register_forward_pre_hook(lambda m, a, k: value.append((a, k)), with_kwargs=True)
    raised = []
    forward(model)
    handle.remove()
    kwargs = {name: each for name, each in value[0][1].items() if name not in ("past_key_values", "cache")}

    def meanwhile(module, args):
        raised.append(told(lambda: block(*value[0][0], **kwargs)))

    handle = modules_of(model)[0].register_forward_pre_hook(meanwhile)
    with ot.steering(model, METHOD, T):
        forward(model)
    handle.remove()
    assert ("Two threads run" if kind == "hooked" else "outside a forward pass") in str(raised[0])


@pytest.mark.parametrize("kind", ["bridge", "nnsight", "huggingface"])
def test_a_streamer_thread_is_steered_in_turns(kind):
    model = load(kind, "llama")
    own = {"do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0, "max_new_tokens": STEPS}
    call = model.hf_generate if kind == "bridge" else getattr(model, "_module", model).generate
    with ot.steering(model, METHOD, 30.0) as first:
        right = call(IDS, **own)
    words = model.tokenizer.decode(right[0, 4:], skip_special_tokens=True)
    assert words != model.tokenizer.decode(ot.generate(model, IDS, **{**OPTIONS, "T": None}).tokens[0, 4:])
    with ot.steering(model, METHOD, 30.0) as report:
        for _ in range(3):  # nobody joins: the last word comes before the thread's end
            streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
            thread = threading.Thread(target=call, args=(IDS,), kwargs={**own, "streamer": streamer})
            thread.start()
            assert "".join(streamer) == words
        assert torch.equal(call(IDS, **own), right)
        thread.join()
    assert report.tokens_steered[1] == 4 * first.tokens_steered[1]


def test_a_pool_inside_the_block_takes_turns_with_its_owner(loaded):
    kind, model = loaded
    with ot.steering(model, METHOD, T):
        right = generate(model, kind, PROMPT)
        with ThreadPoolExecutor(1) as pool:
            for _ in range(2):
                for found in (pool.submit(generate, model, kind, PROMPT).result(), generate(model, kind, PROMPT)):
                    assert all(map(torch.equal, found, right))


def test_threads_of_the_block_that_overlap_or_outlive_it_are_told(loaded, monkeypatch):
    monkeypatch.setattr(owners, "_PATIENCE", 0.2)  # seconds, in which this thread stands still
    kind, model = loaded
    hold, there, raised = threading.Event(), threading.Event(), []

    def pause(module, args):
        if threading.current_thread() is not threading.main_thread() and not there.is_set():
            there.set()
            assert hold.wait(60)

    handle = modules_of(model)[2].register_forward_pre_hook(pause)
    with pytest.raises(RuntimeError, match=r"thread\.join\(\)"):
        with ot.steering(model, METHOD, T):
            ended = started(lambda: generate(model, kind, PROMPT))
            assert there.wait(60)
            raised += [told(lambda: forward(model))]
            for way in (lambda: forward(model), lambda: ot.generate(model, IDS, OTHER, T=1.0)):
                with pytest.raises(RuntimeError, match="Two threads run this model"):
                    way()
    assert "Two threads run this model" in str(raised[0])
    hold.set()
    ended()
    handle.remove()


def test_a_thread_that_comes_between_two_passes_of_a_generate_is_refused():
    """Between its passes a generate is in no forward of the model, and still goes on."""
    model, raised = load("huggingface", "llama"), []

    def between(ids, scores):
        raised.append(told(lambda: forward(model)))
        return scores

    own = {"do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0, "max_new_tokens": STEPS}
    with ot.steering(model, METHOD, 30.0) as report:
        right = model.generate(IDS, **own)
        assert torch.equal(model.generate(IDS, **own, logits_processor=[between]), right)
        assert told(lambda: forward(model)) is None
    assert len(raised) == STEPS and all("Two threads run this model" in str(error) for error in raised)
    assert report.tokens_steered[1] == 2 * STEPS + 1


def test_a_lock_makes_threads_take_turns(loaded):
    _kind, model = loaded
    lock, methods = threading.Lock(), [METHOD, OTHER]
    right = [ot.generate(model, IDS, method, **OPTIONS).tokens for method in methods]
    assert not torch.equal(*right)

    def work(number):
        for _ in range(5):
            with lock:
                found = ot.generate(model, IDS, methods[number], **OPTIONS)
            assert torch.equal(found.tokens, right[number])

    assert [ended() for ended in [started(lambda n=n: work(n)) for n in range(2)]] == [None, None]


def test_without_a_lock_a_text_is_right_or_refused(loaded):
    _kind, model = loaded
    methods = [METHOD, OTHER]
    right = [ot.generate(model, IDS, method, **OPTIONS).tokens for method in methods]
    assert not torch.equal(*right)

    def work(number):
        for _ in range(6):
            try:
                found = ot.generate(model, IDS, methods[number], **OPTIONS)
            except RuntimeError as error:
                assert "Load one model per thread" in str(error)
            else:
                assert torch.equal(found.tokens, right[number])

    assert [ended() for ended in [started(lambda n=n: work(n)) for n in range(2)]] == [None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_in_two_threads_do_not_meet(kind):
    from torch._dynamo import eval_frame

    models, before = [load(kind, "llama") for _ in range(2)], eval_frame._stance.stance
    right = [generate(model, kind, PROMPT) for model in models]
    barrier = threading.Barrier(2)

    def work(number):
        for turn in range(4):
            with ot.steering(models[number], METHOD, T):
                barrier.wait(60)
                found = generate(models[number], kind, PROMPT)
                barrier.wait(60)
                if (number + turn) % 2:  # the blocks overlap, and end in either order
                    barrier.wait(60)
            if not (number + turn) % 2:
                barrier.wait(60)
            assert not torch.equal(found[1], right[number][1])

    assert [ended() for ended in [started(lambda n=n: work(n)) for n in range(2)]] == [None, None]
    assert eval_frame._stance.stance == before


def test_another_task_is_refused_and_the_block_is_unharmed(loaded):
    kind, model = loaded
    with ot.steering(model, METHOD, T):
        right = generate(model, kind, PROMPT)

    async def owner(opened, tried):
        with ot.steering(model, METHOD, T):
            opened.set()
            await tried.wait()
            return generate(model, kind, PROMPT)

    async def other(opened, tried):
        await opened.wait()
        for way in ways(model, kind):
            with pytest.raises(RuntimeError, match=r"Another asyncio task.*`async with lock:`"):
                way()
        tried.set()

    async def both():
        opened, tried = asyncio.Event(), asyncio.Event()
        return (await asyncio.gather(owner(opened, tried), other(opened, tried)))[0]

    assert all(map(torch.equal, asyncio.run(both()), right))

    async def one():
        return generate(model, kind, PROMPT)

    with ot.steering(model, METHOD, T):  # all that runs in a loop inside the block is its own
        assert all(map(torch.equal, asyncio.run(one()), right))


class Wrapper(torch.nn.Module):
    """A user's own module around a model."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class Twice(Wrapper):
    """Its forward calls the model twice, and between them `between`."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        self.inner(input_ids=input_ids, use_cache=False)
        self.between()
        return self.inner(input_ids=input_ids, use_cache=False)


def test_a_thread_that_comes_between_two_passes_of_one_forward_is_refused():
    model, raised = load("huggingface", "llama"), []
    twice = Twice(model)
    twice.between = lambda: None
    with ot.steering(twice, METHOD, T, positions="all") as alone:
        right = twice(IDS).logits
    twice.between = lambda: raised.append(told(lambda: forward(model)))
    with ot.steering(twice, METHOD, T, positions="all") as report:
        assert torch.equal(twice(IDS).logits, right)
    assert "Two threads run this model" in str(raised[0]) and report.tokens_steered == alone.tokens_steered


@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_that_comes_in_a_forward_after_another_one_inside_it_is_refused(kind):
    model, raised = load(kind, "llama"), []
    with ot.steering(model, METHOD, T, positions="all"):
        right = forward(model)

    def nested(module, args):
        if not raised:
            raised.append(None)
            assert torch.equal(forward(model), right)
            raised[0] = told(lambda: forward(model))

    handle = modules_of(model)[0].register_forward_pre_hook(nested)
    with ot.steering(model, METHOD, T, positions="all"):
        with contextlib.suppress(RuntimeError):  # HookedTransformer's outer pass cannot go on after the inner one
            assert torch.equal(forward(model), right)
    handle.remove()
    assert "Two threads run this model" in str(raised[0])


def test_two_coroutines_take_turns_in_a_block_and_an_error_keeps_its_frames():
    model = load("huggingface", "llama")

    class Writer(torch.nn.Module):
        async def generate(self, ids):
            for _ in range(3):
                ids = torch.cat([ids, forward(model)[:, -1:].argmax(-1)], 1)
                await asyncio.sleep(0)
            return ids

    async def both():
        return await asyncio.gather(Writer().generate(IDS), Writer().generate(IDS))

    with ot.steering(model, METHOD, T):
        assert torch.equal(*asyncio.run(both()))
        with pytest.raises(ValueError) as error:
            model.generate(IDS, max_new_tokens=-3)
        forward(model)
    trace, kept = error.value.__traceback__, []
    while trace is not None:
        kept.append(trace.tb_frame.f_locals.get("self"))
        trace = trace.tb_next
    assert any(one is model for one in kept)


@pytest.mark.parametrize("shape", ["wrapper", "part", "adapter"])
@pytest.mark.parametrize("first", ["base", "other"])
def test_a_wrapper_and_a_part_of_a_model_are_steered_by_its_block_and_belong_to_its_owner(shape, first):
    """Both blocks would act on both: another thread is refused, and this one's blocks add up, as on one model."""
    base = load("huggingface", "llama")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")  # it changes nothing yet
    other = {"wrapper": Wrapper, "part": lambda m: m.model, "adapter": lambda m: peft.get_peft_model(m, config)}[shape](
        base
    )
    owner, guest = (base, other) if first == "base" else (other, base)

    def last_hidden(model):
        states = []
        handle = base.model.norm.register_forward_hook(lambda module, args, output: states.append(output.detach()))
        model(input_ids=IDS)
        handle.remove()
        return states[0]

    def steered():
        with ot.steering(guest, OTHER, T, positions="all"):
            last_hidden(guest)

    with ot.steering(base, METHOD, T, positions="all"), ot.steering(base, OTHER, T, positions="all"):
        both = last_hidden(base)
    with ot.steering(owner, METHOD, T, positions="all") as report:
        for work in (steered, lambda: ot.collect(guest, IDS, IDS + 1, layer=2)):
            with pytest.raises(RuntimeError, match="Another thread has a block"):
                raise told(work)
        assert report.tokens_steered == {METHOD.origin.layer: 0}
        with ot.steering(guest, OTHER, T, positions="all"):
            assert torch.equal(last_hidden(guest), both)
    steered()
