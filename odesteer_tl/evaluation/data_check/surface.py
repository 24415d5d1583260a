"""What stands on the surface of texts: words and tokens, without template, BOS or query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from odesteer_tl.backends.chat_templates import chats_of
from odesteer_tl.backends.model_info import tokenizer_of
from odesteer_tl.backends.tokenize import Texts, token_texts, tokenise
from odesteer_tl.data.tokens import Tokenised


@dataclass(frozen=True)
class Surface:
    """All texts, the desired ones first: how each reads, its tokens, and how many are desired."""

    texts: list[str]
    tokens: list[list[int]]
    n_desired: int

    @property
    def sides(self) -> tuple[int, int]:
        """How many texts there are, per side."""
        return self.n_desired, len(self.texts) - self.n_desired


def surface_of(model: Any, desired: Texts, undesired: Texts) -> Surface:
    """The surface of both sides. Raises ValueError for an empty text, and as `tokenise` does."""
    texts, tokens, counts = [], [], []
    for name, side in (("desired", desired), ("undesired", undesired)):
        read, ids = _side(model, side)
        empty = [number for number, text in enumerate(read) if not text.strip()]
        if empty:
            raise ValueError(
                f"Text {empty[0]} of {name} is empty{f', and {len(empty) - 1} more' if len(empty) > 1 else ''}: drop "
                "it, as in [text for text in texts if text.strip()], with its partner where texts are pairs."
            )
        texts += read
        tokens += ids
        counts.append(len(read))
    return Surface(texts, tokens, counts[0])


def named(model: Any, token: int) -> str:
    """A token as it reads, in quotes, or its number without a tokenizer."""
    tokenizer = tokenizer_of(model)
    return f"Token {token}" if tokenizer is None else repr(token_texts(tokenizer, [token])[0])


def shown(model: Any, texts: Texts) -> list[str]:
    """How each of the texts reads."""
    return _side(model, texts)[0]


def _side(model: Any, texts: Texts) -> tuple[list[str], list[list[int]]]:
    if isinstance(texts, (torch.Tensor, Tokenised)):
        known = tokenise(model, texts)
        tokenizer = tokenizer_of(model)
        bos = getattr(tokenizer, "bos_token_id", None)
        rows = [row[real].tolist() for row, real in zip(*known, strict=True)]
        rows = [row[1:] if len(row) > 1 and bos is not None and row[0] == bos else row for row in rows]
        if tokenizer is None:
            return [" ".join(map(str, row)) for row in rows], rows
        return ["".join(token_texts(tokenizer, row)) for row in rows], rows
    chats = chats_of(texts)
    lines: Sequence[Any] = [texts] if isinstance(texts, str) else [_said(chat) for chat in chats] if chats else texts
    if not all(isinstance(line, str) for line in lines) or len(lines) == 0 or not all(map(str.strip, lines)):
        if all(isinstance(line, str) for line in lines) and len(lines) > 0:
            return list(lines), [[] for _ in lines]  # `surface_of` says which is empty
        tokenise(model, texts)  # says what is wrong
    read = tokenise(model, list(lines), prepend_bos=False)
    return list(lines), [row[real].tolist() for row, real in zip(*read, strict=True)]


def _said(chat: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(str(message.get("content", "")) for message in chat)
