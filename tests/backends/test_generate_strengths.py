"""Several strengths in one batch: the tokens of each alone, and the prompts computed once."""

import pytest
import torch
from instances import without_shape_checks
from models import EVERY, hugging_face, load
from oracle import LAYER, Asking, Stub, logits, steered_positions
from transformers.generation import utils as generation

import odesteer_tl as ot
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.own_draws import OwnDraws

TEXTS = ["the film is", "a", "we saw it and it was good"]
STRENGTHS = [0.5, 1.5, 3.0]
METHOD = Stub(32)
CHAT = "{% for m in messages %}the {{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module", params=[(kind, family) for kind in EVERY for family in ("llama", "gpt2")], ids="-".join)
def loaded(request):
    return (*request.param, load(*request.param))


def same(found, alone):
    assert torch.equal(found.tokens, alone.tokens) and torch.equal(found.mask, alone.mask)
    assert torch.equal(found.prompt_lengths, alone.prompt_lengths)
    assert found.texts == alone.texts and found.continuations == alone.continuations


class Seen:
    """Rows and columns of every pass, at the first block."""

    def __init__(self, model):
        self.block = backend_of(model).decoder_blocks(model, None)[0]
        self.shapes = []

    def __enter__(self):
        def sees(module, args, kwargs):
            value = args[0] if args else kwargs["hidden_states"]
            self.shapes.append(tuple(value.shape[:2]))

        self.handle = self.block.register_forward_pre_hook(sees, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ["a", "the"]], ids=["unequal", "one", "short"])
def test_greedy_tokens_are_those_of_a_plain_hook_and_the_prompts_are_computed_once(loaded, texts, monkeypatch):
    _, family, model = loaded
    options, said = {"max_new_tokens": 6, "stop_at_eos": False}, list[str]()
    monkeypatch.setattr(generation.logger, "warning", said.append)
    with Seen(model) as seen:
        found = ot.generate_strengths(model, texts, METHOD, STRENGTHS, **options)
    assert not said  # of pads at the end, where a prompt of one token stands beside longer ones
    rows, width = len(texts) * len(STRENGTHS), int(found[0].prompt_lengths.max())
    assert seen.shapes == [(len(texts), width - 1)] * (width > 1) + [(rows, 1)] * 6
    for T, out in zip(STRENGTHS, found, strict=True):
        same(out, ot.generate(model, texts, METHOD, T, **options))
        for tokens, mask, length in zip(out.tokens, out.mask, out.prompt_lengths.tolist(), strict=True):
            row = tokens[mask].tolist()
            for end in range(length, len(row)):
                where = steered_positions("decoding", length, end)
                assert row[end] == int(logits(hugging_face(family), row[:end], where, METHOD, T)[-1].argmax())
    assert texts is not TEXTS or len({tuple(out.continuations) for out in found}) > 1
    assert found[0].report and found[0].report.tokens_steered == {LAYER: rows * 6}


@pytest.mark.parametrize("batch_size", [None, 2])
def test_sampled_tokens_are_those_of_each_strength_alone_whatever_shares_the_batch(loaded, batch_size):
    model = loaded[-1]
    own = {"max_new_tokens": 9, "temperature": 1.3, "top_k": 12, "top_p": 0.95, "seed": 3}
    before = torch.get_rng_state()
    found = ot.generate_strengths(model, TEXTS, METHOD, STRENGTHS, samples=2, batch_size=batch_size, **own)
    assert torch.equal(torch.get_rng_state(), before)
    texts = [text for text in TEXTS for _ in range(2)]
    for T, out in zip(STRENGTHS, found, strict=True):
        same(out, ot.generate(model, texts, METHOD, T, batch_size=batch_size and 2 * batch_size, **own))
    two = ot.generate_strengths(model, TEXTS, METHOD, STRENGTHS[1:], samples=2, batch_size=batch_size, **own)
    same(two[0], found[1])
    same(two[1], found[2])
    assert len({text for out in found for text in out.continuations}) > 6


@pytest.mark.parametrize("positions", ["prompt", "all", slice(0, 2), torch.tensor([[True], [False], [True]])], ids=str)
def test_steered_prompts_are_not_shared_and_a_warning_says_so(loaded, positions):
    model = loaded[-1]
    with pytest.warns(UserWarning, match="computed its own prompt.*positions="):
        found = ot.generate_strengths(model, TEXTS, METHOD, STRENGTHS, positions=positions, max_new_tokens=4)
    for T, out in zip(STRENGTHS, found, strict=True):
        same(out, ot.generate(model, TEXTS, METHOD, T, positions=positions, max_new_tokens=4))


def test_inside_a_block_the_prompts_are_not_shared(loaded):
    model = loaded[-1]
    with ot.steering(model, Stub(32, seed=1), 1.0):
        with pytest.warns(UserWarning, match="a steering block is open"):
            found = ot.generate_strengths(model, TEXTS, METHOD, STRENGTHS, max_new_tokens=4)
        for T, out in zip(STRENGTHS, found, strict=True):
            same(out, ot.generate(model, TEXTS, METHOD, T, max_new_tokens=4))


@pytest.mark.parametrize("method", [Asking(32), Stub(32, layer=0)], ids=["query", "first block"])
@pytest.mark.parametrize("positions", ["generated", slice(9, 11)], ids=str)
def test_methods_that_ask_for_the_prompt_and_positions_after_it(loaded, method, positions):
    model = loaded[-1]
    options = {"positions": positions if isinstance(method, Stub) else "decoding", "max_new_tokens": 5}
    for T, out in zip(STRENGTHS, ot.generate_strengths(model, TEXTS, method, STRENGTHS, **options), strict=True):
        same(out, ot.generate(model, TEXTS, method, T, **options))


def test_chats_relative_strengths_and_a_fitted_method(loaded):
    model = loaded[-1]
    random = torch.Generator().manual_seed(0)
    acts = ot.ContrastiveActivations(*torch.randn(2, 40, 32, generator=random), layer=1)
    method, own = ot.ODESteer.fit(acts), {"chat_template": CHAT, "max_new_tokens": 5}
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    found = ot.generate_strengths(model, chats, method, relative_T=torch.tensor([0.1, 0.9]), **own)
    for T, out in zip((0.1, 0.9), found, strict=True):
        same(out, ot.generate(model, chats, method, relative_T=T, **own))


def test_a_state_is_not_copied_by_rows():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=24, hidden_size=32, num_hidden_layers=3, state_size=4, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(config).eval()
    tokens = torch.randint(3, 24, (2, 5), generator=torch.Generator().manual_seed(0))
    own = {"max_new_tokens": 5, "blocks": "backbone.layers", "stop_at_eos": False}
    with pytest.warns(UserWarning, match="cache of this MambaForCausalLM is not copied"):
        found = ot.generate_strengths(model, tokens, METHOD, STRENGTHS, **own)
    for T, out in zip(STRENGTHS, found, strict=True):
        same(out, ot.generate(model, tokens, METHOD, T, **own))


@without_shape_checks()
def test_what_cannot_be_run_is_refused(loaded):
    model = loaded[-1]
    for wrong in (1.0, [], [[1.0]], ["a"], "ab", torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="holds the strengths, such as T="):
            ot.generate_strengths(model, TEXTS, METHOD, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        ot.generate_strengths(model, TEXTS, METHOD, [1.0, float("nan")])
    with pytest.raises(ValueError, match="either T or relative_T"):
        ot.generate_strengths(model, TEXTS, METHOD, [1.0], relative_T=[1.0])
    with pytest.raises(ValueError, match="carries its strengths"):
        ot.generate_strengths(model, TEXTS, [(METHOD, 1.0)], [1.0])
    with pytest.raises(ValueError, match="samples"):
        ot.generate_strengths(model, TEXTS, METHOD, [1.0], samples=0)


def test_a_draw_of_other_rows_is_refused():
    with OwnDraws([torch.Generator()], torch.zeros(3, dtype=torch.long)), pytest.raises(ValueError, match="3 rows"):
        torch.multinomial(torch.ones(2, 4), 1)
