"""Contrasts: what a writer is asked, what is kept of what it writes, and what is refused."""

import hashlib

import pytest
from instances import without_shape_checks
from models import load

import odesteer_tl as ot
from odesteer_tl.evaluation.contrasts.everyday_questions import QUESTIONS
from odesteer_tl.evaluation.contrasts.kept_pairs import AGAIN, ECHO, EMPTY, SAME, why_dropped
from odesteer_tl.evaluation.data_check.near_duplicates import near

AXIS = ("politeness", "is polite: it thanks", "is rude: it mocks")
ENDS = ("on Monday", "in the garden", "by bicycle", "with an old friend", "for a week", "at the sea", "before lunch")
EXAMPLES = [
    ("What is tea?", "A fine drink, thank you.", "Look it up, fool."),
    ("Who won?", "Thanks, we did.", "Not you."),
]


def digits(text: str) -> str:
    """Different for different texts, the same in every process."""
    return str(int(hashlib.sha256(text.encode()).hexdigest()[:16], 16))


class Told:
    """A writer that says which side it was asked for, which question, and keeps the chats."""

    def __init__(self):
        self.chats, self.sizes = [], []

    def __call__(self, chats):
        self.chats += chats
        self.sizes.append(len(chats))
        return [self.answer(chat) for chat in chats]

    def answer(self, chat):
        said = " ".join(message["content"] for message in chat)
        (number,) = [number for number, question in enumerate(QUESTIONS) if question in chat[-1]["content"]]
        side = "Thank you" if ("polite" in said or "butler" in said or "fine drink" in said) else "You fool"
        return (
            f"{side}, case {number * 7919} {ENDS[number % 7]}.\n  And {number * 104729} then {ENDS[number % 5]} more."
        )


def made(writer=None, **options):
    writer = writer or Told()
    return writer, ot.contrastive(writer, *AXIS, **options)


def test_each_question_is_asked_once_for_each_side_and_the_answers_are_a_pair():
    writer, found = made(seed=3)
    assert len(found) == 51 and len(found.prompts) == 13 and not found.dropped
    assert set(found.questions) | set(found.prompts) == set(QUESTIONS) and len(set(found.questions)) == 51
    assert len(writer.chats) == 102 and max(writer.sizes) == 16
    for number, pair in enumerate(found.pairs):
        assert list(pair.asked) == writer.chats[2 * number : 2 * number + 2]
        for chat, text, (own, other), start in zip(
            pair.asked, (pair.desired, pair.undesired), (AXIS[1:], AXIS[:0:-1]), ("Thank you", "You fool"), strict=True
        ):
            said = " ".join(message["content"] for message in chat)
            assert own in said and other not in said and pair.question in chat[-1]["content"]
            assert text == " ".join(writer.answer(chat).split()) and text.startswith(start)
        both = [" ".join(message["content"] for message in chat) for chat in pair.asked]
        assert both[0].replace(AXIS[1], "#") == both[1].replace(AXIS[2], "#")  # nothing else differs
    assert {pair.form for pair in found.pairs} == {"system", "persona"}


def test_the_seed_deals_the_questions_and_the_same_seed_gives_the_same():
    assert made(seed=1)[1].questions == made(seed=1)[1].questions != made(seed=2)[1].questions


def test_people_and_examples_stand_in_their_forms():
    people = [("a courteous butler", "a sulking teenager")]
    _, found = made(forms=["persona"], personas=people, questions=QUESTIONS[:4])
    assert all("a courteous butler" in pair.asked[0][-1]["content"] for pair in found.pairs)
    assert all("a sulking teenager" in pair.asked[1][-1]["content"] for pair in found.pairs)
    assert not any("polite" in pair.asked[0][-1]["content"] for pair in found.pairs)
    _, found = made(examples=EXAMPLES, questions=[*QUESTIONS[:9], EXAMPLES[0][0]], held_back=0.0)
    assert [pair.form for pair in found.pairs] == ["system", "persona", "few-shot"] * 3  # an example is no question
    asked = found.pairs[2].asked
    assert [message["content"] for message in asked[1]] == [
        "What is tea?", "Look it up, fool.", "Who won?", "Not you.", found.pairs[2].question,
    ]  # fmt: skip
    assert [message["role"] for message in asked[0]] == ["user", "assistant", "user", "assistant", "user"]


def test_the_texts_feed_collect_check_and_sweep():
    _, found = made(questions=QUESTIONS[:16], held_back=0.25)
    model = load("huggingface", "llama")
    acts = ot.collect(model, **found.texts, layer=1)
    by_hand = ot.collect(model, found.desired, found.undesired, queries=found.questions, layer=1)
    assert acts.paired and acts.desired.equal(by_hand.desired) and len(acts.desired) == 12
    assert all(text.startswith(" T") for text in found.desired)
    demo = ot.load_demo().model
    check = found.check(demo, method=ot.ITI, layers=2, positions="last")
    assert check.counts == (12, 12) and check["first token"].verdict == "look"
    plan = ot.sweep(demo, found, {"CAA": ot.CAA}, primary="n", metrics={"n": len}, dry_run=True)
    assert plan.prompts == len(found.prompts) == 4


def test_the_prompts_themselves_may_be_the_texts_and_nothing_is_written():
    writer, found = made(answers=False, questions=QUESTIONS[:16])
    assert not writer.chats and not found.answers and found.texts["paired"] is True and "queries" not in found.texts
    for pair in found.pairs:
        assert pair.desired.replace(AXIS[1], "#") == pair.undesired.replace(AXIS[2], "#")
        assert pair.question in pair.desired and "\n" not in pair.desired
    check = found.check(ot.load_demo().model, method=ot.ITI, layers=2, positions="last")
    assert check["surface"].numbers["baseline"] == 1.0 and check["surface"].verdict == "look"  # the definitions say it


class Repeating(Told):
    def answer(self, chat):
        text = super().answer(chat)
        return text if sum(map(ord, chat[-1]["content"])) % 3 else f"{text[:9]}, as ever, nothing new to say to anyone."


def test_a_writer_that_repeats_itself_keeps_one_of_each():
    _, found = made(Repeating())
    again = [pair for pair in found.dropped if pair.why == AGAIN]
    assert len(found) + len(again) == 51 and len(again) > 5
    same = [pair for pair in found.pairs if "nothing new" in pair.desired]
    assert len(same) == 1
    assert not near(found.desired + found.undesired)


def test_each_reason_drops_its_pair():
    prompt = "You write short answers to questions. Take care that the answer is polite."
    answers = [
        ("Thank you so much for that.", "What a silly thing to say."),
        ("", "What else would one say?"),
        ("...", "Something rather long and unkind."),
        ("One and the same words for all", "one and the SAME words, for all!"),
        ("Take care that the answer is polite.", "No, I will not do anything."),
        ("thank you so much for that", "A new and unkind sentence here."),
        ("Another new and friendly sentence.", "Thank you so much for that!"),
        ("Yes.", "No."),
    ]
    found = why_dropped(answers, [(prompt, prompt)] * len(answers))
    assert found == [None, EMPTY, EMPTY, SAME, ECHO, AGAIN, AGAIN, None]
    assert why_dropped([], []) == []


@pytest.mark.parametrize(
    ("writer", "said"),
    [
        (lambda chats: ["" for _ in chats], "No pair is left of 51: 51 empty"),
        (lambda chats: ["?!\0 …" for _ in chats], "No pair is left of 51: 51 empty"),
        (lambda chats: ["the same to all who ask" for _ in chats], "51 the same on both sides"),
        (lambda chats: [chat[0]["content"] for chat in chats], "51 repeats its prompt|repeats its prompt"),
        (lambda chats: "text", "returned str"),
        (lambda chats: ["text"], "for 16 chats it returned 1 of str"),
        (lambda chats: [None for _ in chats], "returned 16 of NoneType"),
        (None, "The writer is a model, or a function of a list of chats; got a NoneType"),
        ("gpt2", "got a str"),
    ],
)
def test_rubbish_is_refused(writer, said):
    with without_shape_checks(), pytest.raises(ValueError, match=said):
        ot.contrastive(writer, *AXIS)


def test_an_error_of_the_writer_passes_and_says_how_far_it_was():
    def fails(chats):
        fails.calls += 1
        if fails.calls == 3:
            raise ConnectionError("no more today")
        return [f"{i} {chat[-1]['content']}" for i, chat in enumerate(chats)]

    fails.calls = 0
    with pytest.raises(ConnectionError, match="no more today") as told:
        ot.contrastive(fails, *AXIS)
    assert told.value.__notes__ == [
        "The writer of ot.contrastive failed at chats 32 to 47 of 102 (writing answers); nothing was kept."
    ]


def test_few_pairs_are_told_of():
    with pytest.warns(UserWarning, match="Only 3 of 3 pairs are left, and check_data and choose_layer need 8"):
        made(questions=QUESTIONS[:4])


class Asking(Told):
    """Writes a question of its own two times in three, and knows twenty of them."""

    asked = 0

    def answer(self, chat):
        said = " ".join(message["content"] for message in chat)
        if not said.startswith("Write one question"):
            return f"{'Thanks' if 'polite' in said else 'Bah'}, {digits(said)} for you."
        self.asked += 1
        return "Why?" if self.asked % 3 == 0 else f' 3. "What about {digits(str(self.asked % 20))}?" Sure!'


def test_questions_are_written_and_sifted_and_missing_ones_are_told_of():
    _, enough = made(Asking(), questions=10)
    assert len([*enough.questions, *enough.prompts]) == 10
    with pytest.warns(UserWarning, match=r"Of \d+ texts that were written for questions 20 are questions of their"):
        _, found = made(Asking(), questions=30)
    asked = [*found.questions, *found.prompts]
    assert sorted(asked) == sorted(f"What about {digits(str(number))}?" for number in range(20)) and not near(asked)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"questions": ["one and only?"]}, "at least two different questions; got 1"),
        ({"questions": "one?"}, "questions is a list of texts"),
        ({"questions": 1}, "a number from 2"),
        ({"questions": [1, 2]}, "questions is a list of texts"),
        ({"forms": "system"}, "forms are some of system, persona, few-shot"),
        ({"forms": ["other"]}, "forms are some of"),
        ({"forms": ["few-shot"]}, "shows examples="),
        ({"examples": [("a", "b")]}, r"examples is a list of \(question, desired answer, undesired answer\)"),
        ({"personas": [("a", "")]}, "personas is a list of"),
        ({"held_back": 1.0}, "held_back is a share"),
        ({"ambiguous": "one"}, "ambiguous is a list"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options, said):
    with without_shape_checks(), pytest.raises(ValueError, match=said):
        made(**options)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("a", "", "b"), "desired is a text"), (("a", "is B.", "is b"), "say what tells"), ((1, "a", "b"), "axis is a")],
)
def test_definitions_that_say_nothing_are_refused(words, said):
    with without_shape_checks(), pytest.raises(ValueError, match=said):
        ot.contrastive(Told(), *words)
