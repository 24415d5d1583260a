"""The result of `ot.generate`: tokens and texts, every row cut after its EOS."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from odesteer_tl._shapes import PerRow, TokenIds, TokenMask
from odesteer_tl.backends.model_info import tokenizer_of
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.report import Report


@dataclass(frozen=True, eq=False)
class Generation:
    """The result of `ot.generate`. `texts`: prompt and continuation. `continuations`: the generated part, up to its
    EOS.

    `tokens` [batch, pos]: the left-padded prompts, then the generated columns. `mask` [batch, pos]: the real tokens,
    without pads and without what follows a row's EOS. `prompt_lengths` [batch]: real tokens of each prompt. `report`:
    what was steered, None without a method. The lists of texts are empty if the model has no tokenizer.
    """

    texts: list[str]
    continuations: list[str]
    tokens: TokenIds
    mask: TokenMask
    prompt_lengths: PerRow
    report: Report | None


def finished(
    model: Any, texts: Tokenised, generated: list[Tensor], eos: list[int], report: Report | None
) -> Generation:
    """The `Generation` of several batches, every row cut after its EOS."""
    rows: list[Tensor] = []
    for batch in generated:
        masks = texts.mask[len(rows) : len(rows) + len(batch)]
        rows += batch[:, int(masks.sum(1).max()) :].unbind(0)
    new = pad_sequence(rows, batch_first=True, padding_value=eos[0] if eos else 0)
    generated_mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    ends = torch.isin(new, torch.tensor(eos, dtype=new.dtype, device="cpu")) & generated_mask
    real = generated_mask & (ends.cumsum(1) - ends.long() == 0)
    prompts = [row[mask] for row, mask in zip(*texts, strict=True)]
    wholes, parts = _decoded(model, prompts, [row[mask] for row, mask in zip(new, real & ~ends, strict=True)])
    tokens, mask = torch.cat([texts.tokens, new], dim=1), torch.cat([texts.mask, real], dim=1)
    return Generation(wholes, parts, tokens, mask, texts.mask.sum(1), report)


def _decoded(model: Any, prompts: list[Tensor], continuations: list[Tensor]) -> tuple[list[str], list[str]]:
    """Whole texts and continuations, without special tokens. Many tokenizers drop the leading space of a part, so the
    continuation is cut from the whole text."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        return [], []
    prompt_texts, texts, continuation_texts = (
        [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        for rows in (prompts, [torch.cat(pair) for pair in zip(prompts, continuations, strict=True)], continuations)
    )
    triples = zip(prompt_texts, texts, continuation_texts, strict=True)
    return texts, [text[len(start) :] if text.startswith(start) else part for start, text, part in triples]
