"""Generation: the library's own, with the same tokens whenever the same call is made."""

import numpy as np
import pytest
import torch
from instances import without_shape_checks
from models import KINDS, hugging_face, load
from oracle import LAYER, Stub, T, logits, steered_positions

import odesteer_tl as ot

TEXTS = ["the film is", "a", "we saw it and it was good"]
METHOD = Stub(32)


@pytest.fixture(scope="module", params=[(kind, family) for kind in KINDS for family in ("llama", "gpt2")], ids="-".join)
def loaded(request):
    return (*request.param, load(*request.param))


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return load(request.param, "llama")


def greedy(family, prompt, steps, T=T, eos=()):
    """Token by token from the oracle, steered as "decoding" says."""
    row = list(prompt)
    for _ in range(steps):
        where = steered_positions("decoding", len(prompt), len(row))
        row.append(int(logits(hugging_face(family), row, where, METHOD, T)[-1].argmax()))
        if row[-1] in eos:
            break
    return row


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
@pytest.mark.parametrize("batch_size", [None, 2, 1])
def test_steered_continuations_are_the_oracles(loaded, cache, batch_size):
    _, family, model = loaded
    out = ot.generate(
        model, TEXTS, METHOD, T, max_new_tokens=6, use_past_kv_cache=cache, batch_size=batch_size, stop_at_eos=False
    )
    for i, text in enumerate(TEXTS):
        prompt = model.to_tokens(text)[0].tolist()
        row = out.tokens[i][out.mask[i]].tolist()
        assert row == greedy(family, prompt, 6)
        assert out.prompt_lengths[i] == len(prompt)
        assert out.texts[i] == model.tokenizer.decode(row, skip_special_tokens=True)
        assert out.texts[i] == model.tokenizer.decode(prompt, skip_special_tokens=True) + out.continuations[i]
    assert out.report.tokens_steered == {LAYER: 3 * 6}


def test_without_a_method_it_is_the_librarys_generate(loaded):
    _, _, model = loaded
    out = ot.generate(model, TEXTS[0], max_new_tokens=8)
    own = model.generate(TEXTS[0], max_new_tokens=8, do_sample=False, verbose=False)
    assert out.texts == [own] and out.report is None
    batch = ot.generate(model, TEXTS, max_new_tokens=8)
    tokens = model.generate(TEXTS, max_new_tokens=8, do_sample=False, verbose=False, return_type="tokens")
    assert torch.equal(batch.tokens, tokens)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sampled = model.generate(
            TEXTS, max_new_tokens=8, do_sample=True, temperature=1.5, top_k=9, verbose=False, return_type="tokens"
        )
    found = ot.generate(model, TEXTS, max_new_tokens=8, temperature=1.5, top_k=9, seed=3)
    assert torch.equal(found.tokens, sampled)


def test_sampling_repeats_by_seed_and_leaves_the_global_generator_alone(model):
    def run(seed, **options):
        return ot.generate(model, TEXTS, METHOD, T, max_new_tokens=12, seed=seed, **options).tokens

    before = torch.get_rng_state()
    first = run(1, do_sample=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(run(1, do_sample=True), first)
    assert not torch.equal(run(2, do_sample=True), first)
    plain = run(1)
    assert not torch.equal(plain, first)
    for options in ({"temperature": 2.0}, {"top_k": 20}, {"top_p": 0.95}):
        assert not torch.equal(run(1, **options), plain)
    assert torch.equal(run(1, temperature=0.0), plain)
    assert torch.equal(run(1, do_sample=False, temperature=2.0), plain)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_each_prompt_may_have_a_strength_of_its_own(loaded, batch_size):
    _, family, model = loaded
    strengths = torch.tensor([0.0, 3.0, 6.0])
    options = {"max_new_tokens": 5, "batch_size": batch_size, "stop_at_eos": False}
    out = ot.generate(model, TEXTS, METHOD, strengths, **options)
    listed = ot.generate(model, TEXTS, [(METHOD, strengths)], **options)
    assert torch.equal(out.tokens, listed.tokens)
    for i, (text, strength) in enumerate(zip(TEXTS, strengths.tolist(), strict=True)):
        assert out.tokens[i][out.mask[i]].tolist() == greedy(family, model.to_tokens(text)[0].tolist(), 5, strength)


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("rule", ["generated", "prompt"])
def test_the_border_may_lie_within_the_prompts(loaded, rule, batch_size):
    """As where an instruction ends: "generated" is then CAA's own rule, all tokens after the instruction."""
    _, family, model = loaded
    borders, hf = [1, 2, 3], hugging_face(family)
    options = {"max_new_tokens": 5, "batch_size": batch_size, "stop_at_eos": False}
    out = ot.generate(model, TEXTS, METHOD, T, positions=rule, prompt_lengths=borders, **options)
    assert out.report.tokens_steered[LAYER] > (15 if rule == "generated" else 5)
    for i, (text, border) in enumerate(zip(TEXTS, borders, strict=True)):
        row = model.to_tokens(text)[0].tolist()
        for _ in range(5):
            where = steered_positions(rule, border, len(row))
            row.append(int(logits(hf, row, where, METHOD, T)[-1].argmax()))
        assert out.tokens[i][out.mask[i]].tolist() == row
    with pytest.raises(ValueError, match="one value per prompt: 3 prompts"):
        ot.generate(model, TEXTS, METHOD, T, prompt_lengths=[1, 2])


def test_continuations_end_at_the_end_of_text(model, monkeypatch):
    free = ot.generate(model, TEXTS, max_new_tokens=8, stop_at_eos=False)
    end = int(free.tokens[0, -6])  # a token that row 0 does generate
    assert int((free.tokens[0, -8:] == end).int().argmax()) <= 2
    name = model.tokenizer.convert_ids_to_tokens(end)
    eos = model.tokenizer.eos_token
    monkeypatch.setattr(model.cfg, "eos_token_id", None, raising=False)
    if hasattr(model, "original_model"):
        monkeypatch.setattr(model.original_model.generation_config, "eos_token_id", None)
    model.tokenizer.eos_token = name
    try:
        out = ot.generate(model, TEXTS, max_new_tokens=8)
    finally:
        model.tokenizer.eos_token = eos
    row, full = out.tokens[0][out.mask[0]].tolist(), free.tokens[0][free.mask[0]].tolist()
    n = int(out.prompt_lengths[0])
    assert row == full[: n + full[n:].index(end) + 1]
    assert row[-1] == end and out.continuations[0] == model.tokenizer.decode(row[n:-1])


def test_a_mask_of_positions_may_differ_by_row(model):
    where = torch.zeros(3, 4, dtype=torch.bool)
    where[0, 1] = where[2, 3] = True  # none in row 1, which is no error: some token was steered
    for batch_size in (None, 1):
        out = ot.generate(model, TEXTS, METHOD, T, positions=where, max_new_tokens=2, batch_size=batch_size)
        assert out.report.tokens_steered == {LAYER: 2}


def test_prompts_may_be_tokens(model):
    texts = ot.generate(model, TEXTS, METHOD, T, max_new_tokens=4)
    left = ot.backends.tokenise(model, TEXTS)
    assert torch.equal(ot.generate(model, left, METHOD, T, max_new_tokens=4).tokens, texts.tokens)
    one = model.to_tokens(TEXTS[0])
    assert ot.generate(model, one, METHOD, T, max_new_tokens=4).texts == texts.texts[:1]
    with pytest.raises(ValueError, match=r"ot\.Tokenised"):
        ot.generate(model, left.tokens, METHOD, T)


def test_beams_are_the_bridges():
    model = load("bridge", "llama")
    out = ot.generate(model, TEXTS, METHOD, torch.tensor([3.0, 1.0, 2.0]), max_new_tokens=5, num_beams=3)
    alone = [
        ot.generate(model, text, METHOD, strength, max_new_tokens=5, num_beams=3)
        for text, strength in zip(TEXTS, (3.0, 1.0, 2.0), strict=True)
    ]
    assert out.texts == [each.texts[0] for each in alone]
    plain = ot.generate(model, TEXTS[0], max_new_tokens=5, num_beams=3, stop_at_eos=False)
    own = model.hf_generate(
        model.to_tokens(TEXTS[0]), max_new_tokens=5, num_beams=3, do_sample=False, stop_at_eos=False
    )
    assert torch.equal(plain.tokens, own)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"T": 1.0, "method": None}, "without a method"),
        ({"max_new_tokens": 0}, "max_new_tokens is a whole number of at least 1, got 0"),
        ({"max_new_tokens": "3"}, "max_new_tokens is a whole number of at least 1, got '3'"),
        ({"max_new_tokens": 2.5}, r"got 2\.5"),
        ({"max_new_tokens": True}, "got True"),
        ({"num_beams": 2.0}, r"num_beams is a whole number of at least 1, got 2\.0"),
        ({"batch_size": "2"}, "batch_size is a whole number"),
        ({"top_k": 2.5}, "top_k is a whole number"),
        ({"top_p": "0.5"}, "top_p is a finite number of at least 0, got '0.5'"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]"),
        ({"seed": None}, "seed is a whole number"),
        ({"seed": 1.5}, r"got 1\.5"),
        ({"seed": 2**70}, r"seed below 2\*\*63"),
        ({"temperature": None}, "temperature is a finite number of at least 0, got None"),
        ({"temperature": "1"}, "got '1'"),
        ({"temperature": -1.0}, r"at least 0, got -1\.0"),
        ({"temperature": float("nan")}, "temperature is a finite number of at least 0, got nan"),
        ({"temperature": float("inf")}, "finite"),
        ({"positions": slice("a", None)}, "counts forwards, in whole tokens"),
        ({"positions": slice(0, 2.5)}, "in whole tokens"),
        ({"positions": slice(None, None, 0)}, "in whole tokens"),  # range(3)[::0] is none either
        ({"prompt_lengths": 2.5}, r"prompt_lengths are whole numbers of tokens, such as 5 or \[5, 3\], got 2\.5"),
        ({"prompt_lengths": True}, "got True"),
        ({"prompt_lengths": "3"}, "got '3'"),
        ({"prompt_lengths": -1}, "from 0; got -1"),
        ({"prompt_lengths": [[5]]}, "one per row"),
        ({"prompts": torch.tensor([[1, 100]])}, r"Token 100 is none of this model's \d+ tokens.*resize_token_embed"),
        ({"prompts": torch.tensor([[1, -1]])}, "Token -1 is none"),
        ({"prompts": ot.Tokenised(torch.tensor([[99, 1, 100]]), torch.tensor([[False, True, True]]))}, "Token 100 is"),
        ({"prompts": torch.ones(1, 3, dtype=torch.bool)}, "Tokens are integers"),
        ({"prompts": []}, "No text"),
        ({"prompts": ["good", ""], "prepend_bos": False}, "Text 1"),
        ({"positions": "generated", "max_new_tokens": 1}, "No token was steered"),
        ({"T": torch.ones(2)}, "one value per prompt: 3 prompts, got 2 values"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(model, options, says):
    with without_shape_checks(), pytest.raises(ValueError, match=says):
        ot.generate(model, **{"prompts": TEXTS, "method": METHOD, "T": T, **options})


def test_numbers_of_numpy_and_torch_are_numbers(model):
    plain = ot.generate(model, TEXTS, METHOD, T, max_new_tokens=4, temperature=0.5, top_p=0.5, seed=3).tokens
    with without_shape_checks():
        other = ot.generate(
            model, TEXTS, METHOD, T, max_new_tokens=np.int64(4), temperature=np.float32(0.5),
            top_p=torch.tensor(0.5), seed=torch.tensor(3), batch_size=np.int64(3),
        )  # fmt: skip
    assert torch.equal(other.tokens, plain)


if "hooked" in KINDS:

    def test_hooked_transformer_says_what_it_cannot_do():
        model = load("hooked", "llama")
        with pytest.raises(ValueError, match="no beam search"):
            ot.generate(model, TEXTS, num_beams=2)
        with pytest.raises(ValueError, match="begin with the pad token"):
            ot.generate(model, ot.Tokenised(torch.tensor([[0, 5], [1, 5]]), torch.ones(2, 2, dtype=torch.bool)))


def test_a_folder_becomes_a_bridge(tmp_path, capfd):
    from models import tokenizer

    hugging_face("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    model = ot.load_model(tmp_path)
    assert "".join(capfd.readouterr()) == ""
    tokens = [ot.generate(each, TEXTS, max_new_tokens=4).tokens for each in (model, load("bridge", "llama"))]
    assert torch.equal(*tokens)
    assert next(ot.load_model(str(tmp_path), dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16
