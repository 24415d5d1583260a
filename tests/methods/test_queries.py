"""Laws of methods that read a prompt's last token: what they make of it steers the whole prompt and what follows, in
every library, with the cache on or off; the oracle is a torch hook that knows which token that is."""

import nnsight
import pytest
import torch
from models import BACKENDS, KINDS, hugging_face, load, width
from oracle import EFFECT, LAYER, PROMPTS, STEPS, TOLERANCE, Asking, T, chunks, deviations, generate, logits, padded

import odesteer_tl as ot

PROMPT = PROMPTS["single"][0]
TOKENS = torch.tensor([PROMPT])
RULES = ["decoding", "generated", "prompt", "all", slice(1, 3)]
STRENGTHS = torch.tensor([3.0, 1.0, 2.0])


@pytest.fixture(
    scope="module", params=[(kind, family) for kind in BACKENDS for family in ("llama", "gpt2")], ids="-".join
)
def loaded(request):
    kind, family = request.param
    return kind, family, load(kind, family)


def check(family, rows, new, found, rule, method, strengths, least=EFFECT):
    for error, effect in deviations(family, rows, new, found, rule, method, strengths):
        assert error <= TOLERANCE
        assert effect >= least


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("prompts", PROMPTS)
def test_in_a_block(loaded, prompts, rule):
    """With a cache and without in turn, so that every two of library, model, prompts, rule and cache meet."""
    kind, family, model = loaded
    cache = (BACKENDS.index(kind) + (family == "gpt2") + (prompts == "batch") + RULES.index(rule)) % 2 == 0
    rows, method = PROMPTS[prompts], Asking(width(model))
    strength = STRENGTHS if prompts == "batch" else T
    with ot.steering(model, method, strength, positions=rule):
        new, found = generate(model, kind, rows, cache)
    check(family, rows, new, found, rule, method, STRENGTHS.tolist() if prompts == "batch" else [T])
    if cache:
        assert method.asked == len(rows)  # once per prompt


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
def test_in_a_graph(cache, rule):
    """With the two models in turn, so that each meets every rule or its cache."""
    family = ("llama", "gpt2")[(RULES.index(rule) + cache) % 2]
    model, rows = load("nnsight", family), PROMPTS["batch"]
    method, twice = Asking(32), Asking(32, seed=1)
    tokens, mask = padded(rows, 0)
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}
    with model.generate({"input_ids": tokens, "attention_mask": mask}, use_cache=cache, **options) as tracer:
        found = nnsight.save([])
        for _ in tracer.iter[:STEPS]:
            ot.intervene(model, method, T, positions=rule)
            found.append(model.lm_head.output[:, -1])
        new = nnsight.save(tracer.result)
    check(family, rows, new[:, -STEPS:], torch.stack(found, dim=1), rule, method, [T] * 3)
    if cache:
        assert method.asked == 3
    with model.generate({"input_ids": tokens, "attention_mask": mask}, use_cache=cache, **options) as tracer:
        found = nnsight.save([])
        for _ in tracer.iter[:STEPS]:
            ot.intervene(model, twice, 1.0, positions=rule)
            ot.intervene(model, twice, 2.0, positions=rule)  # the same object: it reads what the first call wrote
            found.append(model.lm_head.output[:, -1])
        new = nnsight.save(tracer.result)
    with ot.steering(model, [(twice, 1.0), (twice, 2.0)], positions=rule):
        out = model.generate(
            tokens, attention_mask=mask, use_cache=cache, output_logits=True, return_dict_in_generate=True, **options
        )
    assert torch.equal(out.sequences, new)
    torch.testing.assert_close(torch.stack(out.logits, dim=1), torch.stack(found, dim=1), rtol=0, atol=TOLERANCE)


def test_prompt_lengths_say_which_token_is_asked(loaded):
    kind, family, model = loaded
    method, row = Asking(32), [*PROMPT, 9, 10]
    with ot.steering(model, method, T, positions="all", prompt_lengths=4):
        if kind == "nnsight":
            with model.trace(torch.tensor([row])):
                found = nnsight.save(model.lm_head.output)
        else:
            found = model(torch.tensor([row]))
    expected = logits(hugging_face(family), row, list(range(6)), method, T, 3)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_two_prompts_in_a_block_are_asked_each(kind):
    model, method = load(kind, "llama"), Asking(32)
    rows = [[1, 8, 4, 5], [1, 9, 10, 11]]
    with ot.steering(model, method, T):
        first, second = (generate(model, kind, [row]) for row in rows)
    for row, (new, found) in zip(rows, (first, second), strict=True):
        check("llama", [row], new, found, "decoding", method, [T])


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_in_chunks(kind):
    """Its last token comes in the second: what comes before it cannot be steered."""
    model, method = load(kind, "llama"), Asking(32)
    pieces = TOKENS[:, :2], TOKENS[:, 2:]
    with ot.steering(model, method, T, prompt_lengths=4):
        found = torch.cat(list(chunks(model, kind, pieces)))
    expected = logits(hugging_face("llama"), PROMPT, [3], method, T, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="prompt_lengths"):
        with ot.steering(model, method, T, positions="all"):
            list(chunks(model, kind, pieces))
    with pytest.raises(ValueError, match="before that one was seen"):
        with ot.steering(model, method, T, positions="all", prompt_lengths=4):
            list(chunks(model, kind, pieces))


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_share_the_answer_of_their_prompt(use_cache):
    model, method, prompts = load("bridge", "llama"), Asking(32), [PROMPT, [1, 8]]
    tokens, mask = padded(prompts, 0)
    with ot.steering(model, method, T):
        out = model.hf_generate(
            tokens, attention_mask=mask, max_new_tokens=STEPS, num_beams=4, num_return_sequences=4, do_sample=False,
            stop_at_eos=False, use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    beams = out.sequences[:, tokens.shape[1] :].tolist()
    for i, (beam, found) in enumerate(zip(beams, out.sequences_scores, strict=True)):
        row, n = prompts[i // 4] + beam[:-1], len(prompts[i // 4])
        steered = logits(hugging_face("llama"), row, list(range(n - 1, len(row))), method, T, n - 1)[n - 1 :]
        score = steered.log_softmax(-1).gather(1, torch.tensor(beam).unsqueeze(1)).mean()
        torch.testing.assert_close(found, score, rtol=0, atol=TOLERANCE)


def test_a_cache_filled_elsewhere_has_no_answer():
    model = load("nnsight", "llama")
    with torch.no_grad():
        cache = model._module(TOKENS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="before that one was seen"):
        with model.trace(torch.tensor([[5]]), past_key_values=cache):
            ot.intervene(model, Asking(32), T)


def test_a_single_hook_remembers_nothing_and_is_refused():
    with pytest.raises(ValueError, match="has no memory"):
        ot.steering_hook(Asking(32), T)


def test_gradients_reach_the_query():
    """The push on a later token depends on the prompt's last one, and on no other."""
    model, method = load("bridge", "llama"), Asking(32)
    seen = {}

    def grown(value, hook):
        seen["pre"] = value.detach().requires_grad_()
        return seen["pre"]

    def read(value, hook):
        seen["post"] = value

    name = f"blocks.{LAYER}.hook_resid_post"
    with model.hooks(fwd_hooks=[(name, grown)]):
        with ot.steering(model, method, T, positions="all", prompt_lengths=3):
            with model.hooks(fwd_hooks=[(name, read)]), torch.enable_grad():
                model(TOKENS)
    (found,) = torch.autograd.grad(seen["post"][0, 3].sum(), seen["pre"])
    a = seen["pre"].detach().requires_grad_()
    (expected,) = torch.autograd.grad((a[0, 3] + T * method.push(a[0, 2])).sum(), a)
    torch.testing.assert_close(found, expected)
