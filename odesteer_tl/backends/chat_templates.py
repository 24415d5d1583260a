"""Chats: messages and system prompts, as the tokenizer's chat template, or another one, writes them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from odesteer_tl.data.tokens import Tokenised

ChatTemplate = bool | str | Callable[[str], str]
"""True: the tokenizer's own template around one user message; a string: this Jinja template; or text -> text."""
Templates = ChatTemplate | tuple[ChatTemplate, ChatTemplate]
"""One for all texts, or one for the desired and one for the undesired texts."""
Systems = str | tuple[str | None, str | None] | None
"""A system prompt for all texts, or one for the desired and one for the undesired texts."""
Chat = Sequence[Mapping[str, Any]]
"""Messages, [{"role": "user", "content": …}, …]."""


def per_side(prepend_bos: bool | None, chat_template: Templates, system: Systems) -> list[dict[str, Any]]:
    """How `tokenise` is to write desired and undesired texts. Raises ValueError for what is neither one nor a pair."""
    for name, value in (("chat_template", chat_template), ("system", system)):
        if isinstance(value, (tuple, list)) and len(value) != 2:
            raise ValueError(f"{name} is one for all texts or a pair, (for desired, for undesired); got {len(value)}.")
    templates, systems = (
        tuple(value) if isinstance(value, (tuple, list)) else (value, value) for value in (chat_template, system)
    )
    return [
        {"prepend_bos": prepend_bos, "chat_template": template, "system": said}
        for template, said in zip(templates, systems, strict=True)
    ]


def check_style(texts: Any, template: Any, system: Any) -> None:
    """Raise ValueError for a template or a system prompt that cannot be one of these texts."""
    if isinstance(template, (tuple, list)):
        raise ValueError("One chat template is for all texts here; a pair, one per side, goes to ot.collect.")
    if not isinstance(template, (bool, str)) and not callable(template):
        raise ValueError(
            "chat_template is True (the tokenizer's own), a Jinja template or a function of the text; got "
            f"{type(template).__name__}."
        )
    if system is None:
        return
    if not isinstance(system, str):
        raise ValueError(f"system is one system prompt here, a text; got {type(system).__name__}.")
    if isinstance(texts, (Tensor, Tokenised)):
        raise ValueError("system= goes before texts; tokens are taken as they are, so put it into them.")
    if callable(template) or (template is False and chats_of(texts) is None):
        raise ValueError(
            "A system prompt is written by a chat template: pass chat_template=True or a Jinja template with system=, "
            "or put it into the texts."
        )


def chats_of(texts: Any) -> list[Chat] | None:
    """The chats, where `texts` is one or a list of them."""
    if all_of(texts, Mapping):
        return [texts]
    if isinstance(texts, Sequence) and not isinstance(texts, str) and texts and all(all_of(t, Mapping) for t in texts):
        return list(texts)
    return None


def all_of(things: Any, kind: type) -> bool:
    """Whether it is a list of things of that kind; an empty one is a list of texts."""
    if isinstance(things, (str, Tokenised)) or not isinstance(things, Sequence):
        return False
    return all(isinstance(each, kind) for each in things) and (len(things) > 0 or kind is str)


def kinds(texts: Any) -> str:
    """What was given in place of texts."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        return type(texts).__name__
    return f"{type(texts).__name__} of {', '.join(sorted({type(each).__name__ for each in texts}))}"


def rendered(tokenizer: Any, text: str | Chat, template: ChatTemplate, system: str | None) -> str:
    """A chat, or a text as one user message, as the chat template writes it."""
    if callable(template):
        if not isinstance(text, str):
            raise ValueError("A chat is written by the tokenizer's template or by a Jinja template, not by a function.")
        return template(text)
    if template is True and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "A chat needs a template, and this tokenizer has no chat template: pass a Jinja template, or a function "
            "of the text, as chat_template=, or plain texts without it."
        )
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else [dict(each) for each in text]
    for each in messages:
        if not {"role", "content"} <= set(each):
            raise ValueError(f'A message has a "role" and a "content", this one has {sorted(map(str, each))}.')
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError("system= was given, and the chat begins with a system message: leave one of them out.")
        messages = [{"role": "system", "content": system}, *messages]
    going_on = messages[-1]["role"] == "assistant"
    own = {} if template is True else {"chat_template": template}
    try:
        written = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not going_on, continue_final_message=going_on, **own
        )
    except Exception as error:  # Jinja's, and what a template raises itself
        roles = ", ".join(str(each["role"]) for each in messages)
        raise ValueError(
            f"The chat template does not write messages of {roles}: {error}. Where it knows no system prompt, put that "
            "into the user's text."
        ) from error
    if system is not None and system.strip() not in written:
        raise ValueError("The chat template leaves the system prompt out: put it into the user's text.")
    return written
