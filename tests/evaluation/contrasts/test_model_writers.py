"""A model as the writer: in its template where it has one, else as questions and answers; the embedded model writes."""

import pytest
from models import load

import odesteer_tl as ot
from odesteer_tl.backends.model_info import tokenizer_of
from odesteer_tl.evaluation.contrasts import writers
from odesteer_tl.evaluation.contrasts.templates import as_text
from odesteer_tl.evaluation.contrasts.writers import ModelWriter

CHATS = [
    [{"role": "system", "content": "be good"}, {"role": "user", "content": "was it good"}],
    [{"role": "user", "content": "the film"}],
]
PLAIN = "{% for m in messages %}{{ m.role }} {{ m.content }} . {% endfor %}{% if add_generation_prompt %}so{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
DROPS = PLAIN.replace(
    "{{ m.role }} {{ m.content }} .", "{% if m.role != 'system' %}{{ m.role }} {{ m.content }}{% endif %}"
)


@pytest.fixture
def asked(monkeypatch):
    """What `ot.generate` was called with, which still writes."""
    calls = []

    def generate(model, prompts, **options):
        calls.append((prompts, options))
        return real(model, prompts, **options)

    real = writers.generate
    monkeypatch.setattr(writers, "generate", generate)
    return calls


def test_without_a_template_a_chat_is_questions_and_answers(asked):
    model = load("huggingface", "llama")
    writer = ModelWriter(model, 5, 7)
    first, second = writer(CHATS), writer(CHATS)
    assert len(first) == 2 and not writer.chats
    assert asked[0][0] == ["be good\nQuestion: was it good\nAnswer:", "Question: the film\nAnswer:"]
    assert as_text([*CHATS[1], {"role": "assistant", "content": "good"}, *CHATS[1]]) == (
        "Question: the film\nAnswer: good\nQuestion: the film\nAnswer:"
    )
    assert [options["seed"] for _, options in asked] == [7, 8] and asked[0][1]["do_sample"]
    assert ModelWriter(model, 5, 7)(CHATS) == first != second


@pytest.mark.parametrize(("template", "keeps"), [(PLAIN, True), (NO_SYSTEM, False), (DROPS, False)])
def test_a_template_is_used_and_a_system_message_that_it_does_not_write_is_the_users(
    asked, monkeypatch, template, keeps
):
    model = load("huggingface", "llama")
    monkeypatch.setattr(tokenizer_of(model), "chat_template", template)
    writer = ModelWriter(model, 3, 0)
    writer(CHATS)
    folded = [{"role": "user", "content": "be good\n\nwas it good"}]
    assert writer.chats and asked[0][0] == [CHATS[0] if keeps else folded, CHATS[1]]


def test_a_text_ends_with_its_last_whole_sentence_and_of_a_base_model_with_its_line():
    assert writers._whole('It was. "So it is!" And then') == 'It was. "So it is!"'
    assert writers._whole("no sentence 3.5 at all") == "no sentence 3.5 at all"
    assert writers._first_line("\n It was. Question: no\nmore") == "It was. "


def test_the_embedded_model_continues_the_examples_and_knows_nothing_of_instructions():
    """It was trained on film reviews alone: pairs are there, and that they differ in the axis is for `check` to say."""
    demo = ot.load_demo()
    examples = [("What about the film?", pair["desired"].strip(), pair["undesired"].strip()) for pair in demo.pairs[:3]]
    options = {"forms": ["few-shot"], "examples": examples, "max_new_tokens": 24, "held_back": 0.2}
    questions = [pair["query"] for pair in demo.pairs[3:19]]
    found, again = (
        ot.contrastive(demo.model, "verdict", "praises", "condemns", questions=questions, **options) for _ in range(2)
    )
    assert found == again and found.writer == "embedded" and not found.chat
    assert len(found) >= 8 and len(found) + len(found.dropped) + len(found.prompts) == len(set(questions))
    assert all(text.startswith(" ") and "\n" not in text for text in (*found.desired, *found.undesired))
    acts = ot.collect(demo.model, **found.texts, layer=2, position="mean")
    assert acts.paired and len(acts.desired) == len(found)
