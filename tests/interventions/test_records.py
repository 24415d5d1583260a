"""Recordings: what a block says of each token that it steered, against a plain torch hook, and nothing unless asked."""

import pytest
import torch
from instances import without_shape_checks
from models import EVERY, hooks_of, load
from oracle import hooked_row
from pages_read import Read

import odesteer_tl as ot
from odesteer_tl.backends.tokenize import token_texts
from odesteer_tl.parity.table import parity_rows

PROMPTS = ["the film", "a plot is good and"]
STEPS = 4


@pytest.fixture(scope="module", params=EVERY)
def model(request):
    model = load(request.param, "llama")
    ot.generate(model, "it", max_new_tokens=1)  # a bridge sets itself up at its first pass
    return model


@pytest.fixture(scope="module")
def method():
    return parity_rows()["ODESteer"]("llama")


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no_cache"])
def test_records_are_those_of_a_torch_hook(model, method, cache):
    T, hooks = 0.5 * method.usual_T, hooks_of(model)
    with ot.steering(model, method, T, record=True) as report:
        out = ot.generate(model, PROMPTS, max_new_tokens=STEPS, stop_at_eos=False, use_past_kv_cache=cache)
    assert hooks_of(model) == hooks
    records = report.records
    assert len(records) == sum(report.tokens_steered.values()) == 2 * STEPS
    for row, (tokens, mask) in enumerate(zip(out.tokens, out.mask, strict=True)):
        ids, length = tokens[mask].tolist(), int(out.prompt_lengths[row])
        _, a, end, _ = hooked_row(ids, method, T, slice(length - 1, None))
        own = [one for one in records if one.row == row]
        assert [one.position for one in own] == list(range(length - 1, len(ids) - 1))
        for one in own:
            assert (one.layer, one.site, one.method, one.prompt) == (method.layer, "resid_post", "ODESteer", 0)
            assert one.token_id == ids[one.position] and one.token == model.tokenizer.decode([one.token_id])
            assert one.generated == (one.position >= length) and one.steered
            before, after = a[one.position], end[one.position]
            assert one.h_before == pytest.approx(float(method.barrier.value(before)), rel=1e-3, abs=1e-3)
            assert one.h_after == pytest.approx(float(method.barrier.value(after)), rel=1e-3, abs=1e-3)
            assert one.displacement == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-3)


def test_the_page_of_a_block_shows_its_texts_and_no_kl(model, method):
    with ot.steering(model, method, 0.5 * method.usual_T, record=True) as report:
        out = ot.generate(model, PROMPTS, max_new_tokens=STEPS, stop_at_eos=False)
        again = ot.generate(model, "it", max_new_tokens=2, stop_at_eos=False)
    read = Read(report.show().html)
    assert [column["side"] for column in read.columns] == ["before", "after"] * 3
    written = [(one, row) for one in (out, again) for row in range(len(one.tokens))]
    for column, (one, row) in zip(read.columns[1::2], written, strict=True):
        ids = one.tokens[row][one.mask[row]].tolist()[:-1]  # the last one was written, and never read
        first = int(one.prompt_lengths[row]) - 1
        assert [token["id"] for token in column["tokens"]] == ids
        assert [token["marked"] for token in column["tokens"]] == [n >= first for n in range(len(ids))]
    assert read.data["kl"] is None and "did not run without steering" in read.text


def test_nothing_is_recorded_unless_asked(model, method):
    with ot.steering(model, method, 1.0) as report:
        ot.generate(model, PROMPTS[0], max_new_tokens=1)
    assert report.recording is None
    for ask in (lambda: report.records, report.show):
        with pytest.raises(ValueError, match="record=True"):
            ask()


def test_a_recording_changes_no_logit(model, method):
    outs = []
    for record in (False, True):
        with ot.steering(model, method, 2.0, record=record):
            outs.append(ot.generate(model, PROMPTS, max_new_tokens=6, do_sample=True, seed=3).tokens)
    assert torch.equal(*outs)


def test_embeddings_have_no_ids_and_recomputed_passes_count_once(method):
    model = load("huggingface", "llama")
    with ot.steering(model, method, 1.0, positions="all", record=True) as report:
        model(inputs_embeds=model.get_input_embeddings()(torch.tensor([[1, 5, 6]])))
    assert [(one.position, one.token_id, one.token) for one in report.records] == [(n, None, None) for n in range(3)]
    report.show()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with ot.steering(model, method, 1.0, positions="all", record=True) as report:
        model(torch.tensor([[1, 5, 6]]), use_cache=False).logits.sum().backward()
    assert len(report.records) == 3


class Spelled:
    """A tokenizer of pieces, with those that decode drops or cannot show."""

    pieces = ("▁the", "▁", "<0xC3>", "film", "<s>", None, "<0xA9>")
    texts = (b"the", b"", b"\xc3", b"film", b"", b"", b"\xa9")

    def decode(self, ids):
        return b"".join(self.texts[number] for number in ids).decode(errors="replace")

    def convert_ids_to_tokens(self, number):
        return self.pieces[number]


def test_tokens_are_written_as_they_stand_in_texts():
    assert token_texts(Spelled(), range(6)) == [" the", " ", "<0xC3>", "film", "<s>", "⟨5⟩"]
    assert token_texts(Spelled(), [3, 2, 6, 3, 2]) == ["film", "é", "◦", "film", "<0xC3>"]
    assert token_texts(None, [7]) == ["⟨7⟩"]


def test_a_value_with_an_axis_of_one_is_a_number_per_token(model):
    class Column:
        def value(self, a):
            return a[..., :1].square()

    with without_shape_checks(), ot.steering(model, ot.GradientFlow(Column(), layer=1), 0.5, record=True) as report:
        ot.generate(model, "the film", max_new_tokens=2)
    with without_shape_checks():
        records = report.records
    assert all(isinstance(one.h_before, float) and one.h_after > one.h_before for one in records if one.steered)
    assert records
