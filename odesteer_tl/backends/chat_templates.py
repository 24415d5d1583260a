"""Chats: turns messages and system prompts into text, with the tokenizer's chat template or another one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from odesteer_tl.data.tokens import Tokenised

ChatTemplate = bool | str | Callable[[str], str]
"""True: the tokenizer's own template, with the text as one user message. A string: a Jinja template. A function: text
-> text."""
Templates = ChatTemplate | tuple[ChatTemplate, ChatTemplate]
"""One template for all texts, or a pair (for desired, for undesired)."""
Systems = str | tuple[str | None, str | None] | None
"""One system prompt for all texts, or a pair (for desired, for undesired)."""
Chat = Sequence[Mapping[str, Any]]
"""Messages, [{"role": "user", "content": …}, …]."""


def per_side(prepend_bos: bool | None, chat_template: Templates, system: Systems) -> list[dict[str, Any]]:
    """The arguments of `tokenise` for desired and for undesired texts. Raises ValueError for a tuple that is not a
    pair."""
    for name, value in (("chat_template", chat_template), ("system", system)):
        if isinstance(value, (tuple, list)) and len(value) != 2:
            raise ValueError(f"{name} is one for all texts or a pair, (for desired, for undesired); got {len(value)}.")
    templates, systems = (
        tuple(value) if isinstance(value, (tuple, list)) else (value, value) for value in (chat_template, system)
    )
    return [
        {"prepend_bos": prepend_bos, "chat_template": template, "system": system_prompt}
        for template, system_prompt in zip(templates, systems, strict=True)
    ]


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template, as those of instruct models have."""
    return bool(getattr(tokenizer, "chat_template", None))


def check_style(texts: Any, template: Any, system: Any) -> None:
    """Raise ValueError for a template or a system prompt that does not fit these texts."""
    if isinstance(template, (tuple, list)):
        raise ValueError("Give one chat template for all texts here; only ot.collect takes a pair, one per side.")
    if not isinstance(template, (bool, str)) and not callable(template):
        raise ValueError(
            "chat_template is True (the tokenizer's own), a Jinja template or a function of the text; got "
            f"{type(template).__name__}."
        )
    if system is None:
        return
    if not isinstance(system, str):
        raise ValueError(f"system is one system prompt here, a string; got {type(system).__name__}.")
    if isinstance(texts, (Tensor, Tokenised)):
        raise ValueError(
            "system= works with texts only: tokens are taken as they are, so put the system prompt into them."
        )
    if callable(template) or (template is False and chats_of(texts) is None):
        raise ValueError(
            "A system prompt is written by a chat template: pass chat_template=True or a Jinja template with system=, "
            "or put it into the texts."
        )


def chats_of(texts: Any) -> list[Chat] | None:
    """The list of chats if `texts` is a chat or a list of chats, else None."""
    if all_of(texts, Mapping):
        return [texts]
    if isinstance(texts, Sequence) and not isinstance(texts, str) and texts and all(all_of(t, Mapping) for t in texts):
        return list(texts)
    return None


def all_of(things: Any, kind: type) -> bool:
    """Whether it is a list of objects of that type; an empty list counts as a list of texts."""
    if isinstance(things, (str, Tokenised)) or not isinstance(things, Sequence):
        return False
    return all(isinstance(thing, kind) for thing in things) and (len(things) > 0 or kind is str)


def described(texts: Any) -> str:
    """A description, for errors, of what was given in place of texts."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        return type(texts).__name__
    return f"{type(texts).__name__} of {', '.join(sorted({type(text).__name__ for text in texts}))}"


def rendered(tokenizer: Any, text: str | Chat, template: ChatTemplate, system: str | None) -> str:
    """The text that the chat template makes of a chat, or of a text as one user message.

    Raises ValueError for a wrong message, a missing template, and a template that fails or drops the system prompt.
    """
    if callable(template):
        if not isinstance(text, str):
            raise ValueError("A function takes texts, not chats: give chat_template=True or a Jinja template.")
        return template(text)
    if template is True and not has_template(tokenizer):
        raise ValueError(
            "A chat needs a template, and this tokenizer has no chat template: pass a Jinja template, or a function "
            "of the text, as chat_template=, or plain texts without it."
        )
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else [dict(message) for message in text]
    for message in messages:
        if not {"role", "content"} <= set(message):
            raise ValueError(f'A message needs a "role" and a "content", this one has {sorted(map(str, message))}.')
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError("The chat already begins with a system message: leave out system=, or that message.")
        messages = [{"role": "system", "content": system}, *messages]
    continues_answer = messages[-1]["role"] == "assistant"
    template_argument = {} if template is True else {"chat_template": template}
    try:
        prompt = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not continues_answer,
            continue_final_message=continues_answer,
            **template_argument,
        )
    except Exception as error:  # an error of Jinja, or one that the template raises itself
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ValueError(
            f"The chat template does not write messages of {roles}: {error}. If it does not support a system prompt, "
            "put that into the user's text."
        ) from error
    if system is not None and system.strip() not in prompt:
        raise ValueError("The chat template leaves the system prompt out: put it into the user's text.")
    return prompt
