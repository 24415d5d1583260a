"""Who writes: a model through `ot.generate`, in its chat template where it has one, or any function of chats."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from odesteer_tl._progress import bar
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.chat_templates import Chat, has_template, rendered
from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.model_info import model_name_of, tokenizer_of
from odesteer_tl.evaluation.contrasts.templates import as_text

Writer = Callable[[Sequence[Chat]], Sequence[str]]
"""A text for each chat, a list of messages with a role and a content. The last message is the user's."""
TEMPERATURE, TOP_P = 0.8, 0.95


class ModelWriter:
    """Samples from a model; each call has another seed. A template without a system role, or that drops it, gets the
    system message at the beginning of the user's. Without a template a chat is plain text with "Question: " and
    "Answer: ", and the text ends with its line."""

    def __init__(self, model: Any, max_new_tokens: int, seed: int) -> None:
        self.model, self.max_new_tokens, self.seed = model, max_new_tokens, seed
        self.tokenizer = tokenizer_of(model)
        self.chats = has_template(self.tokenizer)

    @property
    def name(self) -> str:
        """Which model it is."""
        return str(model_name_of(self.model))

    def __call__(self, chats: Sequence[Chat]) -> list[str]:
        asked: Any = [self._fitting(chat) for chat in chats] if self.chats else [as_text(chat) for chat in chats]
        out = generate(
            self.model, asked, max_new_tokens=self.max_new_tokens, do_sample=True, temperature=TEMPERATURE,
            top_p=TOP_P, seed=self.seed,
        )  # fmt: skip
        self.seed += 1
        return [_whole(text) if self.chats else _whole(_first_line(text)) for text in out.continuations]

    def _fitting(self, chat: Chat) -> Chat:
        first, *rest = chat
        if first["role"] != "system":
            return chat
        try:
            if str(first["content"]) in rendered(self.tokenizer, chat, True, None):
                return chat
        except ValueError:
            pass
        return [{"role": "user", "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def writer_of(writer: Any, max_new_tokens: int, seed: int) -> tuple[Writer, str, bool]:
    """Who writes, its name, and whether its texts belong into a chat template. Raises ValueError for what is neither a
    model nor a function."""
    try:
        backend_of(writer)
    except ValueError:
        if not callable(writer):
            raise ValueError(
                f"The writer is a model, or a function of a list of chats; got a {type(writer).__name__}."
            ) from None
        function: Any = writer  # whether it keeps to that is seen when it has written
        return function, getattr(writer, "__name__", type(writer).__name__), False
    model = ModelWriter(writer, max_new_tokens, seed)
    return model, model.name or type(writer).__name__, model.chats


def written(write: Writer, chats: Sequence[Chat], batch_size: int, label: str, progress: bool | None) -> list[str]:
    """What the writer writes for each chat, on one line each. Raises ValueError where it does not give one text for
    each; its own errors pass, with a note that says how far it was."""
    found: list[str] = []
    for start in bar(range(0, len(chats), batch_size), label=label, progress=progress):
        batch = list(chats[start : start + batch_size])
        try:
            texts: Any = write(batch)
        except Exception as error:
            error.add_note(f"The writer of ot.contrastive failed at chats {start} to {start + len(batch) - 1} of "
                           f"{len(chats)} ({label.lower()}); nothing was kept.")  # fmt: skip
            raise
        good = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not good or len(texts) != len(batch) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                "A writer takes a list of chats and returns a list of as many texts, such as lambda chats: [ask(chat) "
                f"for chat in chats]; for {len(batch)} chats it returned {_kind(texts)}."
            )
        found += [" ".join(_readable(text).split()) for text in texts]
    return found


def _readable(text: str) -> str:
    """Without characters that no file of texts may hold: NUL, and halves of characters."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def _kind(texts: Any) -> str:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        return type(texts).__name__
    return f"{len(texts)} of {', '.join(sorted({type(text).__name__ for text in texts})) or 'nothing'}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].partition("Question:")[0]


def _whole(text: str) -> str:
    """Up to the end of the last sentence, if there is one: what is cut off in the middle of a sentence shows in its
    last token."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"'”’)]*(?=\s|$)", text)]
    return text[: ends[-1]] if ends else text
