"""Texts to left-padded tokens, the same for reading and for generating, never with two BOS."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from odesteer_tl._shapes import AnyTokens, PerRow, TokenIds, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.chat_templates import Chat, ChatTemplate, all_of, chats_of, check_style, described, rendered
from odesteer_tl.backends.model_info import context_of, pad_id_of, prepends_bos, vocabulary_of
from odesteer_tl.data.activations import Tokenised
from odesteer_tl.interventions.pages.token_page import CONTINUED
from odesteer_tl.interventions.positions import uneven_pads

_NO_TEXT = "\ufffd"
"""What tokenizers write for bytes that are no character."""
_MOST_OF_A_CHARACTER = 8
"""More tokens than characters are cut into: at most four bytes each, and some tokens end one and begin the next."""

Texts = str | Sequence[str] | Chat | Sequence[Chat] | AnyTokens | Tokenised


def tokenise(
    model: Any,
    texts: Texts,
    *,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
) -> Tokenised:
    """Token ids of `texts`, left-padded, with the mask of the real ones, both [batch, pos].

    A chat (a list of messages with a role and a content) is one text, written by the chat template (by default the
    tokenizer's). It ends where the answer begins, or, if its last message is the assistant's, after that message.
    `system` becomes a system message before the text, and needs a template.

    `prepend_bos` None follows TransformerLens's `cfg.default_prepend_bos`, the tokenizer of another model, or, with a
    chat template, the template. A text that already begins with the BOS gets no second one. Token tensors are taken as
    they are, and hold no pads; `Tokenised` is moved to left padding. Raises ValueError for no text, a text without
    tokens, a missing tokenizer, template or BOS, tokens and mask of different shapes, a token that the model does not
    have, a tensor whose rows begin or end in different numbers of pad tokens, a wrong template, and a template that
    drops the chat or the system prompt.
    """
    check_style(texts, chat_template, system)
    if isinstance(texts, Tokenised):
        mask = texts.mask.bool()  # Hugging Face's masks are integers, which torch would use as indices
        if mask.shape != texts.tokens.shape or texts.tokens.ndim != 2 or not bool(mask.any(1).all()) or len(mask) == 0:
            raise ValueError(
                "Tokenised needs tokens and mask of one shape [batch, pos] and a real token in every row, got "
                f"{tuple(texts.tokens.shape)} and {tuple(mask.shape)}."
            )
        rows = [row[real].tolist() for row, real in zip(texts.tokens, mask, strict=True)]
        return _known(model, left_padded(rows, _filler(model)))
    if isinstance(texts, torch.Tensor):
        return _known(model, _unpadded(texts, pad_id_of(model)))
    chats = chats_of(texts)
    if chats is None and not isinstance(texts, str) and not all_of(texts, str):
        raise ValueError(
            "Expected texts, chats, a token tensor [batch, pos] or ot.Tokenised(tokens, mask), got "
            f"{described(texts)}; a chat is a list of messages, "
            '[{"role": "user", "content": "…"}]; give a tokenizer\'s output as '
            "ot.Tokenised(out.input_ids, out.attention_mask.bool())."
        )
    tokenizer = backend_of(model).need_tokenizer(model)
    text_list: list[Any] = chats or ([texts] if isinstance(texts, str) else list(texts))
    if not text_list:
        raise ValueError("No text was given.")
    chat_template = True if chats is not None and chat_template is False else chat_template
    if chat_template is not False:
        text_list = [rendered(tokenizer, text, chat_template, system) for text in text_list]
    add_bos = prepend_bos
    if add_bos is None:
        add_bos = chat_template is False and prepends_bos(model)
    if add_bos and tokenizer.bos_token_id is None:
        raise ValueError("prepend_bos=True, but this tokenizer has no BOS token: leave prepend_bos out.")
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in text_list]
    if add_bos:
        rows = [row if row[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id, *row] for row in rows]
    for number, row in enumerate(rows):
        if not row:
            raise ValueError(f"Text {number} ({text_list[number]!r}) has no tokens; drop it, or pass prepend_bos=True.")
    return _known(model, left_padded(rows, _filler(model)))


def tokenise_answers(
    model: Any,
    queries: Texts,
    answers: Texts,
    *,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
) -> tuple[Tokenised, PerRow]:
    """The tokens of each query followed by its answer, and the number of query tokens [batch].

    Template, system prompt and BOS apply to the query. Raises ValueError as `tokenise` does, for another number of
    answers than queries, and for answers that are chats.
    """
    if chats_of(answers) is not None:
        raise ValueError("With queries= the answers are plain texts: give the chats as queries=.")
    query_tokens = tokenise(model, queries, prepend_bos=prepend_bos, chat_template=chat_template, system=system)
    answer_tokens = tokenise(model, answers, prepend_bos=False)
    if len(query_tokens.mask) != len(answer_tokens.mask):
        raise ValueError(
            f"Each query has one desired and one undesired answer: {len(query_tokens.mask)}, {len(answer_tokens.mask)}."
        )
    rows = [
        [*q[p].tolist(), *a[r].tolist()]
        for q, p, a, r in zip(
            query_tokens.tokens, query_tokens.mask, answer_tokens.tokens, answer_tokens.mask, strict=True
        )
    ]
    return left_padded(rows, _filler(model)), query_tokens.mask.sum(1)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each of the tokens of one text as it stands there, with the space before it. A character of several tokens stands
    at the first, and `CONTINUED` at the others. What is no text is spelled as in the vocabulary, and what is not in the
    vocabulary ⟨by its id⟩."""
    texts: list[str] = []
    while len(texts) < len(ids):
        rest, text, count = list(ids[len(texts) : len(texts) + _MOST_OF_A_CHARACTER]), None, 1
        if tokenizer is not None and _NO_TEXT in tokenizer.decode(rest[:1]):
            wholes = ((n, tokenizer.decode(rest[:n])) for n in range(2, len(rest) + 1))
            count, text = next(((n, whole) for n, whole in wholes if _NO_TEXT not in whole), (1, None))
        texts += [_token_text(tokenizer, rest[0]) if text is None else text, *[CONTINUED] * (count - 1)]
    return texts


def _token_text(tokenizer: Any, number: int) -> str:
    text = "" if tokenizer is None else tokenizer.decode([number])
    spelled = None if tokenizer is None else tokenizer.convert_ids_to_tokens(number)
    if not isinstance(spelled, str):
        return text or f"⟨{number}⟩"
    if spelled.startswith("▁") and not text.startswith(" "):
        return f" {text}"  # sentencepiece drops the space at the beginning of what it decodes
    return spelled if not text or _NO_TEXT in text else text


def plain_tokenizer(model: Any) -> Any:
    """The tokenizer as its checkpoint has it. TransformerLens changes the one that it loads to begin every text with
    the BOS; where that cannot be read again, it is returned, with a warning. Raises ValueError if there is none."""
    tokenizer = backend_of(model).need_tokenizer(model)
    if backend_of(model).library != "transformer_lens":
        return tokenizer
    try:
        return type(tokenizer).from_pretrained(tokenizer.name_or_path)
    except (OSError, ValueError):
        warnings.warn(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} cannot be read again, so texts begin as "
            "TransformerLens lets them, with the BOS: give add_bos_token=False if the checkpoint's do not.",
            stacklevel=2,
        )
        return tokenizer


def check_context(model: Any, texts: Tokenised, more: int = 0) -> None:
    """Raises ValueError if a text with `more` tokens after it is longer than the model's context."""
    longest, context = int(texts.mask.sum(1).max()), context_of(model)
    if context is not None and longest + more > context:
        after = f" and {more} tokens to generate" if more else ""
        raise ValueError(f"The longest text has {longest} tokens{after}; the model holds {context}: shorten it.")


def left_padded(rows: list[list[int]], filler: int) -> Tokenised:
    """Rows of ids as one tensor, shorter ones padded on the left with `filler`."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[filler] * (width - len(row)) + row for row in rows], device="cpu")
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device="cpu")
    return Tokenised(tokens, mask)


def trimmed(batch: Tokenised) -> Tokenised:
    """The batch without the columns that are pads in every row."""
    first = int(batch.mask.any(0).int().argmax())
    return Tokenised(batch.tokens[:, first:], batch.mask[:, first:])


def longest_first(mask: TokenMask) -> PerRow:
    """The rows of a batch, those with the fewest pads on the left first: neighbours share passes with few pads."""
    return mask.int().argmax(1).argsort(stable=True)


def right_padded(batch: Tokenised, filler: int) -> Tokenised:
    """The same texts with their pads on the right, where a causal model needs no position ids."""
    rows = [row[real] for row, real in zip(*batch, strict=True)]
    tokens = pad_sequence(rows, batch_first=True, padding_value=filler)
    return Tokenised(tokens, torch.arange(tokens.shape[1], device="cpu") < batch.mask.sum(1, keepdim=True))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _unpadded(tokens: TokenIds, pad_id: int | None) -> Tokenised:
    if tokens.numel() == 0 or tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"Tokens are integers [batch, pos], at least one, got {tokens.dtype} {tuple(tokens.shape)}.")
    if pad_id is not None and uneven_pads(tokens, pad_id):
        raise ValueError(
            f"The rows begin or end in different numbers of the pad token {pad_id}: give the real tokens as "
            "ot.Tokenised(tokens, mask), with a bool mask of the same shape."
        )
    return Tokenised(tokens.cpu(), torch.ones(tokens.shape, dtype=torch.bool, device="cpu"))


def _known(model: Any, texts: Tokenised) -> Tokenised:
    """The texts. Raises ValueError for a token that the model has not: on a GPU that would end the process."""
    real, count = texts.tokens[texts.mask], vocabulary_of(model)
    if int(real.min()) < 0 or (count is not None and int(real.max()) >= count):
        bad = int(real.min() if int(real.min()) < 0 else real.max())
        raise ValueError(
            f"Token {bad} is none of this model's {'' if count is None else f'{count} '}tokens, counted from 0: take "
            "the tokenizer that belongs to it, or resize_token_embeddings for tokens that were added."
        )
    return texts


def _filler(model: Any) -> int:
    return pad_id_of(model) or 0
