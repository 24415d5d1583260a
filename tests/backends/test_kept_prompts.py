"""Texts whose prompts are computed once give what each text gives alone."""

import copy

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, tiny
from models import EVERY, load
from torch.testing import assert_close

import odesteer_tl as ot
from odesteer_tl.backends import text_passes
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.kept_prompts import PromptedRows, kept_prompts
from odesteer_tl.backends.shared_prefix import shared_prefix
from odesteer_tl.backends.tokenize import left_padded
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

ROWS = [[5, 6, 7, 8, 9, 4, 3], [5, 9], [6, 7, 8, 4, 9, 3, 3, 5, 4, 7, 8], [4, 8, 3, 3, 9], [7, 3, 4, 4]]
PROMPTS = [5, 1, 4, 5, 2]
WORDS = torch.tensor([3, 4, 8])


def texts(model, order=(0, 1, 2, 3, 4), **options):
    rows = [torch.tensor(ROWS[number]) for number in order]
    return SteeredTexts.given(model, rows, torch.tensor([PROMPTS[number] for number in order]), **options)


def by_hooks(method, T):
    """KL at each steered token, the gain of each text, and the lifts, text by text under plain torch hooks."""
    costs, gains, lifts = [], [], []
    for row, prompt in zip(ROWS, PROMPTS, strict=True):
        where = list(range(prompt - 1, len(row)))
        p = oracle.logits("llama", row, (), ())[where].double().log_softmax(-1)
        q = oracle.logits("llama", row, oracle.places(method, T), where)[where].double().log_softmax(-1)
        costs.append((p.exp() * (p - q)).sum(-1))
        gains.append(sum(float((q - p)[i, row[prompt + i]]) for i in range(len(row) - prompt)))
        lifts.append((q - p)[:, WORDS])
    return torch.cat(costs), torch.tensor(gains, dtype=torch.float64), torch.cat(lifts).mean(0)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("name", ["ODESteer", "TruthFlow", "A-LQR"])
def test_effects_are_those_of_torch_hooks_whatever_shares_a_pass(name, batch_size):
    model, method = load("huggingface", "llama"), parity_rows()[name]("llama")
    values = [0.3 * method.usual_T, 0.6 * method.usual_T]
    found = texts(model).effects(lambda value: [(method, ot.Strength(value))], values, batch_size, WORDS)
    for number, T in enumerate(values):
        costs, gains, lifts = by_hooks(method, T)
        assert_close(found.costs[number], costs, rtol=1e-4, atol=2e-6)
        assert_close(found.gains[number], gains, rtol=1e-4, atol=1e-4)
        assert_close(found.lifts[number, WORDS], lifts, rtol=1e-4, atol=1e-4)
    assert found.costs.mean() > 1e-3


@pytest.mark.parametrize("kind", EVERY)
def test_prompts_are_computed_once_where_the_model_allows_it(kind, monkeypatch):
    model, method, widths = load(kind, "llama"), parity_rows()["CAA"]("llama"), []
    served = kind in ("bridge", "huggingface")
    assert (kept_prompts(model) is not None) == served
    steered = texts(model)
    plain = backend_of(model).root(model) if served else torch.nn.Identity()
    hook = plain.register_forward_pre_hook(
        lambda module, args, given: widths.append(given.get("input_ids", *args[:1]).shape[1]), with_kwargs=True
    )
    try:
        found = [steered.effects(lambda value: [(method, ot.Strength(value))], [T], 32) for T in (1.0, 2.0, 3.0)]
    finally:
        hook.remove()
    if served:  # the prompts but for their ends, a text to compare and its end, what follows unsteered and steered
        assert widths[-7:] == [4, 11, 8, 8, 8, 8, 8]
    monkeypatch.setattr(text_passes, "kept_prompts", lambda model: None)
    for T, one in zip((1.0, 2.0, 3.0), found, strict=True):
        whole = texts(model).effects(lambda value: [(method, ot.Strength(value))], [T], 32)
        assert_close(one.costs, whole.costs, rtol=1e-4, atol=1e-6)
        assert_close(one.gains, whole.gains, rtol=1e-4, atol=1e-4)


def test_the_order_of_texts_is_that_of_the_results():
    model, method = load("huggingface", "llama"), parity_rows()["CAA"]("llama")
    order = (3, 0, 4, 2, 1)
    one, other = (
        texts(model, given).effects(lambda value: [(method, ot.Strength(value))], [2.0], 2)
        for given in (range(5), order)
    )
    assert_close(other.gains[0], one.gains[0][list(order)], rtol=1e-4, atol=1e-5)
    counts = [len(row) - prompt + 1 for row, prompt in zip(ROWS, PROMPTS, strict=True)]
    parts = one.costs[0].split(counts)
    assert_close(other.costs[0], torch.cat([parts[number] for number in order]), rtol=1e-4, atol=1e-6)


def test_inside_a_block_that_steers_prompts_they_are_not_kept():
    model, method, outer = load("huggingface", "llama"), *(parity_rows()[one]("llama") for one in ("CAA", "ODESteer"))
    steered = texts(model)
    calm = steered.effects(lambda value: [(method, ot.Strength(value))], [2.0], 32).costs
    with ot.steering(model, outer, T=outer.usual_T, positions="all"):
        found = steered.passes.of(torch.arange(5)).logits()
        plain = backend_of(model).logits(model, left_padded(ROWS, filler=0))
    assert torch.equal(found, plain)
    assert_close(steered.effects(lambda value: [(method, ot.Strength(value))], [2.0], 32).costs, calm)


def test_what_does_not_fit_is_run_whole(monkeypatch):
    model, method = load("huggingface", "llama"), parity_rows()["CAA"]("llama")
    found = []
    for most in (2**30, 0):
        monkeypatch.setattr(text_passes, "MOST_KEPT", most)
        steered = texts(model)
        found.append(steered.effects(lambda value: [(method, ot.Strength(value))], [2.0], 2).costs)
        kept = [one for one in steered.passes._held.values() if one is not None]
        assert len(kept) == (2 if most else 0)  # of three passes, of which one has a prompt of one token alone
    assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_family_is_served_as_it_reads_whole_texts_or_not_at_all(family):
    """A sliding window drops keys."""
    model, kept = tiny(family), kept_prompts(tiny(family))
    unserved = family.startswith(("gemma", "mi")) or family == "qwen2"
    assert (kept is None) == unserved
    if kept is None:
        return
    given, lengths = left_padded(ROWS, filler=0), torch.tensor(PROMPTS)
    rows = PromptedRows.of(given, lengths)
    after = given.mask & (given.mask.cumsum(1) >= lengths.unsqueeze(1))
    found = kept.logits(rows, kept.hold(rows.start), torch.arange(5))[rows.rest.mask]
    assert_close(found, backend_of(model).logits(model, given)[after], rtol=1e-4, atol=1e-4)
    chosen = torch.rand(given.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(rows.of_rest(chosen & after, given.mask)[rows.rest.mask], chosen[after])


def test_what_a_few_tokens_do_not_show_is_not_served():
    """Windows that count columns, factors of rotary embeddings for long texts, and states; by trees neither."""
    sizes = {"hidden_size": 32, "vocab_size": 24}
    window = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 256}
    rotary = {**sizes, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    long = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    states = {"layer_types": ["full_attention", "linear_attention"], "num_key_value_heads": 2, "head_dim": 8}
    models = [
        transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**sizes, **window)),
        transformers.Phi3ForCausalLM(transformers.Phi3Config(**rotary, rope_parameters=long, sliding_window=None)),
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**rotary, rope_parameters=dynamic)),
        transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, num_hidden_layers=2, state_size=4)),
        transformers.MiniMaxForCausalLM(transformers.MiniMaxConfig(**rotary, **states, num_local_experts=2)),
    ]
    for model in models:
        assert kept_prompts(model.eval()) is None and shared_prefix(model) is None
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**rotary)).eval()
    assert kept_prompts(plain) is not None and shared_prefix(plain) is not None


@pytest.mark.parametrize("columns", [slice(9, None), slice(0, 9)])
def test_a_hook_of_ones_own_that_counts_columns_is_noticed(columns):
    model = copy.deepcopy(load("huggingface", "llama"))

    def push(module, args, out):
        out = out.clone()
        out[:, columns] += 1.0
        return out

    model.model.layers[0].register_forward_hook(push)
    assert kept_prompts(model) is not None  # of so few tokens all or none are pushed
    rows = torch.arange(5)
    steered = texts(model)
    assert torch.equal(steered.passes.of(rows).logits(), backend_of(model).logits(model, left_padded(ROWS, filler=0)))


def test_a_long_text_without_a_prompt_does_not_hide_such_a_hook():
    model = copy.deepcopy(load("huggingface", "llama"))

    def push(module, args, out):
        out = out.clone()
        out[:, 9:12] += 1.0
        return out

    model.model.layers[0].register_forward_hook(push)
    given = [[3 + number % 7 for number in range(length)] for length in (20, 14)]
    steered = SteeredTexts.given(model, list(map(torch.tensor, given)), torch.tensor([1, 12]))
    assert torch.equal(
        steered.passes.of(torch.arange(2)).logits(), backend_of(model).logits(model, left_padded(given, filler=0))
    )


def test_texts_that_end_within_their_prompts_are_run(monkeypatch):
    model, method, found = load("huggingface", "llama"), parity_rows()["CAA"]("llama"), []
    given = [torch.tensor([5, 6, 7, 8, 9]), torch.tensor([5, 9]), torch.tensor([4, 3, 8])]
    for served in (kept_prompts, lambda model: None):
        monkeypatch.setattr(text_passes, "kept_prompts", served)
        steered = SteeredTexts.given(model, given, torch.tensor([3, 4, 0]))
        found.append(steered.effects(lambda value: [(method, ot.Strength(value))], [2.0], 32).costs)
    assert_close(*found, rtol=1e-4, atol=1e-6)
