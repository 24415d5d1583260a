"""Texts to tokens: one way for reading and for generating, left-padded, never with two BOS."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from odesteer_tl._shapes import AnyTokens, PerRow, TokenIds
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.chat_templates import Chat, ChatTemplate, all_of, chats_of, check_style, kinds, rendered
from odesteer_tl.backends.model_info import context_of, pad_id_of, prepends_bos, vocabulary_of
from odesteer_tl.data.activations import Tokenised
from odesteer_tl.interventions.positions import uneven_pads

Texts = str | Sequence[str] | Chat | Sequence[Chat] | AnyTokens | Tokenised


def tokenise(
    model: Any,
    texts: Texts,
    *,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
) -> Tokenised:
    """Token ids of `texts`, left-padded, with the mask of the real ones.

    A chat, a list of messages with a role and a content, is one text, as the chat template writes it (the tokenizer's
    own unless given): up to where the answer begins, or, where its last message is the assistant's, up to the end of
    what that says. `system` stands before the text as a system message, and needs a template.

    `prepend_bos` None follows TransformerLens' `cfg.default_prepend_bos` or the tokenizer of another model, or, with
    a chat template, the template. A text that already begins with the BOS gets no second one. Token tensors and
    `Tokenised` are taken as they are (a tensor without mask holds no pads), the latter moved to the left. Raises
    ValueError for no text, a text without tokens, a missing tokenizer, template or BOS, tokens and mask that do not
    fit, for a token that the model has not, a tensor whose rows begin or end in different numbers of pad tokens, and
    for a template that is none, or that does not write a chat or its system prompt.
    """
    check_style(texts, chat_template, system)
    if isinstance(texts, Tokenised):
        mask = texts.mask.bool()  # Hugging Face's masks are integers, which would be read as indices
        if mask.shape != texts.tokens.shape or texts.tokens.ndim != 2 or not bool(mask.any(1).all()) or len(mask) == 0:
            raise ValueError(
                f"Tokenised needs tokens and mask of one shape [batch, pos] and a real token in every row, got "
                f"{tuple(texts.tokens.shape)} and {tuple(mask.shape)}."
            )
        rows = [row[real].tolist() for row, real in zip(texts.tokens, mask, strict=True)]
        return _known(model, left_padded(rows, _filler(model)))
    if isinstance(texts, torch.Tensor):
        return _known(model, _unpadded(texts, pad_id_of(model)))
    chats = chats_of(texts)
    if chats is None and not isinstance(texts, str) and not all_of(texts, str):
        raise ValueError(
            f"Expected texts, chats, a token tensor [batch, pos] or ot.Tokenised(tokens, mask), got {kinds(texts)}; a "
            'chat is a list of messages, [{"role": "user", "content": "…"}]; a tokenizer\'s output goes in as '
            "ot.Tokenised(out.input_ids, out.attention_mask.bool())."
        )
    tokenizer = backend_of(model).need_tokenizer(model)
    listed: list[Any] = chats or ([texts] if isinstance(texts, str) else list(texts))
    if not listed:
        raise ValueError("No text was given.")
    chat_template = True if chats is not None and chat_template is False else chat_template
    if chat_template is not False:
        listed = [rendered(tokenizer, text, chat_template, system) for text in listed]
    wanted = prepend_bos
    if wanted is None:
        wanted = chat_template is False and prepends_bos(model)
    if wanted and tokenizer.bos_token_id is None:
        raise ValueError("prepend_bos=True, but this tokenizer has no BOS token; leave prepend_bos out.")
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in listed]
    if wanted:
        rows = [row if row[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id, *row] for row in rows]
    for number, row in enumerate(rows):
        if not row:
            raise ValueError(f"Text {number} ({listed[number]!r}) has no tokens; drop it, or pass prepend_bos=True.")
    return _known(model, left_padded(rows, _filler(model)))


def answered(
    model: Any,
    queries: Texts,
    answers: Texts,
    *,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
) -> tuple[Tokenised, PerRow]:
    """The tokens of each query with those of its answer after them, and the number of the query's.

    The template, the system prompt and the BOS are the query's. Raises ValueError as `tokenise` does, for another
    number of answers, and for answers that are chats.
    """
    if chats_of(answers) is not None:
        raise ValueError("With queries= the answers are plain texts, and the chats before them are the queries.")
    first = tokenise(model, queries, prepend_bos=prepend_bos, chat_template=chat_template, system=system)
    then = tokenise(model, answers, prepend_bos=False)
    if len(first.mask) != len(then.mask):
        raise ValueError(f"Each query has one desired and one undesired answer: {len(first.mask)}, {len(then.mask)}.")
    rows = [
        [*q[p].tolist(), *a[r].tolist()]
        for q, p, a, r in zip(first.tokens, first.mask, then.tokens, then.mask, strict=True)
    ]
    return left_padded(rows, _filler(model)), first.mask.sum(1)


def check_context(model: Any, texts: Tokenised, more: int = 0) -> None:
    """Raises ValueError where a text and `more` tokens after it are longer than the model's context."""
    longest, context = int(texts.mask.sum(1).max()), context_of(model)
    if context is not None and longest + more > context:
        after = f" and {more} tokens to generate" if more else ""
        raise ValueError(f"The longest text has {longest} tokens{after}; the model holds {context}: shorten it.")


def left_padded(rows: list[list[int]], filler: int) -> Tokenised:
    """Rows of ids as one tensor, shorter ones padded on the left with `filler`."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[filler] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Tokenised(tokens, mask)


def trimmed(batch: Tokenised) -> Tokenised:
    """Without the columns that no row needs."""
    first = int(batch.mask.any(0).int().argmax())
    return Tokenised(batch.tokens[:, first:], batch.mask[:, first:])


def right_padded(batch: Tokenised, filler: int) -> Tokenised:
    """The same texts with their pads on the right, where a causal model needs no positions to be told."""
    rows = [row[real] for row, real in zip(*batch, strict=True)]
    tokens = pad_sequence(rows, batch_first=True, padding_value=filler)
    return Tokenised(tokens, torch.arange(tokens.shape[1]) < batch.mask.sum(1, keepdim=True))


def _unpadded(tokens: TokenIds, pad_id: int | None) -> Tokenised:
    if tokens.numel() == 0 or tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"Tokens are integers [batch, pos], at least one, got {tokens.dtype} {tuple(tokens.shape)}.")
    if pad_id is not None and uneven_pads(tokens, pad_id):
        raise ValueError(
            f"The rows begin or end in different numbers of the pad token {pad_id}: say which tokens are real with "
            "ot.Tokenised(tokens, mask), a bool mask of the same shape."
        )
    return Tokenised(tokens.cpu(), torch.ones(tokens.shape, dtype=torch.bool))


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
