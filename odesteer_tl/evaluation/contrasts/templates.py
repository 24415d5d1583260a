"""Forms of paired prompts: the same question, asked twice, under what makes the answers differ.

system        a system message says what must be true of the answer
persona       the user's message gives a person to speak as; a pair of people may be given
few-shot      answers of one side stand before the question, and nothing is said about them

Both prompts of a pair have the same words but for the definition, the person or the examples. The ways of making a
contrast are those of the literature, the sentences are this package's: persona pairs as in RepE (Zou et al. 2023,
arXiv:2310.01405), system prompts for and against as in persona vectors (Chen et al. 2025, arXiv:2507.21509), answers to
one question as in CAA (Panickssery et al. 2023, arXiv:2312.06681).
"""

from collections.abc import Sequence
from typing import Any, Literal

from odesteer_tl.backends.chat_templates import Chat
from odesteer_tl.evaluation.contrasts.axis import Axis

Form = Literal["system", "persona", "few-shot"]
FORMS: tuple[Form, ...] = ("system", "persona", "few-shot")
Example = tuple[str, str, str]
"""A question with its desired and its undesired answer."""

SYSTEM = (
    "Answer in one to three sentences. Whatever is asked, this must be true: the answer {definition}.",
    "You write short answers to questions. Take care that the answer {definition}, from its first word to its last.",
    "There is one rule here, and it goes before all others: the answer {definition}. Keep to three sentences.",
)
PERSONA = (
    "Imagine that you are {person}. Reply to this question as that person would, in one to three sentences: {question}",
    "Someone asks {person}: {question} Write the reply of that person alone, in one to three sentences.",
)
PERSON = "a person of whom it is said that every answer {definition}"
"""Who speaks where no people are given."""
ASK = (
    "Write one question about {topic} that could be answered in two ways: one where the answer {desired}, and one "
    "where the answer {undesired}. The question itself takes no side. Write the question alone."
)
TOPICS = (
    "work", "food", "travel", "a neighbour", "school", "money", "the weather", "a film", "health", "a friend", "sports",
    "music", "a book", "technology", "pets", "a mistake", "a holiday", "the news", "family", "a city", "the past",
    "a plan", "sleep", "shopping",
)  # fmt: skip


def paired_prompts(
    axis: Axis, form: Form, question: str, turn: int, personas: Sequence[tuple[str, str]], examples: Sequence[Example]
) -> tuple[Chat, Chat]:
    """The prompts of both sides, as chats that end with the question. `turn` chooses the wording, or the people."""
    return _prompt(axis, form, question, turn, 0, personas, examples), _prompt(
        axis, form, question, turn, 1, personas, examples
    )


def _prompt(axis: Axis, form: Form, question: str, turn: int, side: int, personas: Any, examples: Any) -> Chat:
    definition = axis.sides[side]
    if form == "system":
        return [_said("system", SYSTEM[turn % len(SYSTEM)].format(definition=definition)), _said("user", question)]
    if form == "persona":
        person = personas[turn % len(personas)][side] if personas else PERSON.format(definition=definition)
        return [_said("user", PERSONA[turn % len(PERSONA)].format(person=person, question=question))]
    shown = [(one[0], one[1 + side]) for one in examples]
    asked = [message for q, a in shown for message in (_said("user", q), _said("assistant", a))]
    return [*asked, _said("user", question)]


def question_prompt(axis: Axis, turn: int) -> Chat:
    """The prompt for a question about the topic whose turn it is."""
    topic = TOPICS[turn % len(TOPICS)]
    return [_said("user", ASK.format(topic=topic, desired=axis.desired, undesired=axis.undesired))]


def as_text(chat: Chat) -> str:
    """A chat for a model without a chat template: questions and answers, what a system message says before them."""
    heads = {"system": "", "user": "Question: ", "assistant": "Answer: "}
    lines = [f"{heads[str(message['role'])]}{message['content']}" for message in chat]
    return "\n".join([*lines, "Answer:"])


def one_line(chat: Chat) -> str:
    """All that a chat says, on one line: a text that can stand in a file."""
    return " ".join(" ".join(str(message["content"]) for message in chat).split())


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
