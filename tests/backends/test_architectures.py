"""Every verb on every architecture: steered logits are those of a torch hook on the Hugging Face model, row by row."""

import copy

import nnsight
import pytest
import torch
from architectures import ARCHITECTURES, WIDTH, tiny
from models import tokenizer
from oracle import EFFECT, LAYER, TOLERANCE, Stub, T, padded

import odesteer_tl as ot

STEPS = 4
ROWS = [[1, 5, 6, 7, 9, 8, 4], [1, 8, 4], [1]]  # longer than the sliding windows, and shorter
LAST_COLUMN_ONLY = {"gemma4"}  # while generating, blocks that share keys are given the last column of a prompt


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request):
    hf = tiny(request.param, "eager")
    # A copy: nnsight puts a forward of its own on every module.
    own = nnsight.TransformersModel(copy.deepcopy(hf), tokenizer=tokenizer(), task="text-generation")
    return request.param, hf, own


@torch.no_grad()
def expected(name, hf, row, positions, method, seen=None):
    """Logits [pos, d_vocab] of one row, its block steered at `positions` by a torch hook. `seen` collects its input."""

    def hook(module, args, output):
        value = (output[0] if isinstance(output, tuple) else output).clone()
        if seen is not None:
            seen.append(value[0].clone())
        for position in positions:
            value[0, position] += T * method.push(value[0, position])
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = hf.get_submodule(f"{ARCHITECTURES[name][2]}.{LAYER}").register_forward_hook(hook)
    try:
        return hf(torch.tensor([row]), use_cache=False).logits[0]
    finally:
        handle.remove()


def check(name, hf, new, found, method):
    for row, generated, mine in zip(ROWS, new.tolist(), found, strict=True):
        whole, last = row + generated[:-1], len(row) - 1
        steered = expected(name, hf, whole, range(last, len(whole)), method)[last:]
        plain = expected(name, hf, whole, (), method)[last:]
        assert (mine - steered).abs().nan_to_num(torch.inf).max() <= TOLERANCE
        assert (steered - plain).abs().max() >= EFFECT


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
@pytest.mark.parametrize("way", ["steering", "intervene"])
def test_generation_in_a_batch(loaded, way, cache):
    name, hf, model = loaded
    method, (tokens, mask) = Stub(WIDTH), padded(ROWS, 0)
    options = {
        "max_new_tokens": STEPS,
        "do_sample": False,
        "eos_token_id": 10**6,
        "pad_token_id": 0,
        "use_cache": cache,
    }
    if name in LAST_COLUMN_ONLY:
        options["output_hidden_states"] = True
    if way == "steering":
        with ot.steering(model, method, T) as report:
            out = model.generate(
                tokens, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options
            )
        new, found = out.sequences[:, -STEPS:], torch.stack(out.logits, dim=1)
        assert report.tokens_steered == {LAYER: len(ROWS) * STEPS}
    else:
        with model.generate({"input_ids": tokens, "attention_mask": mask}, **options) as tracer:
            found = nnsight.save([])
            for _ in tracer.iter[:STEPS]:
                ot.intervene(model, method, T)
                found.append(model.output.logits[:, -1])
            new = nnsight.save(tracer.result)
        new, found = (new if torch.is_tensor(new) else new.sequences)[:, -STEPS:], torch.stack(found, dim=1)
    check(name, hf, new, found, method)


def test_reading(loaded):
    name, hf, model = loaded
    acts = ot.collect(model, ot.Tokenised(*padded(ROWS, 0)), torch.tensor([[4, 5]]), layer=LAYER)
    for row, found in zip(ROWS, acts.desired, strict=True):
        seen = []
        expected(name, hf, row, (), Stub(WIDTH), seen)
        assert torch.allclose(found, seen[0][-1], atol=1e-4)
    assert acts.desired.shape == (3, WIDTH) and acts.processing == "raw"


def test_generating(loaded):
    _, _, model = loaded
    out = ot.generate(model, ot.Tokenised(*padded(ROWS, 0)), Stub(WIDTH), T, max_new_tokens=2, stop_at_eos=False)
    assert out.tokens.shape == (3, len(ROWS[0]) + 2) and out.report.tokens_steered == {LAYER: 6}


class Tupled(torch.nn.Module):
    """A model of no known architecture, whose blocks return tuples, as those of earlier transformers do."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden_states, note=None):
            return hidden_states + self.inner(hidden_states), "kept"

    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList([self.Block() for _ in range(3)])

    def forward(self, x):
        for part in self.parts:
            x, note = part(hidden_states=x)
            assert note == "kept"
        return x


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("way", ["steering", "intervene"])
def test_tuples_and_keywords_of_an_unknown_architecture(way, site):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf, x = Tupled(), torch.randn(2, 4, WIDTH)
    model, method = nnsight.NNsight(hf), Stub(WIDTH)
    edits = method.edits(T)
    method.edits = lambda T, **_: [ot.Edit(ot.Site(LAYER, site), ot.Site(LAYER, site), edits[0].apply)]
    with pytest.raises(ValueError, match=r'blocks="transformer\.h"'), ot.steering(model, method, T, positions="all"):
        pass
    if way == "steering":
        with ot.steering(model, method, T, positions="all", blocks="parts"), model.trace(x):
            found = nnsight.save(model.output)
    else:
        with model.trace(x):
            ot.intervene(model, method, T, positions="all", blocks=model.parts)
            found = nnsight.save(model.output)
    after = LAYER + (site == "resid_post")
    for number, part in enumerate(hf.parts):
        x = x + T * method.push(x) if number == after else x
        x = x + part.inner(x)
    assert torch.allclose(found, x, atol=1e-4)
