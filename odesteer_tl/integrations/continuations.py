"""Continuations up to a stop string, in any library: written in pieces, each as steered as the whole would be.

The libraries' own generate ends at tokens, not at strings. So a piece is written, read, and the texts that have not
ended are continued: their prompt then holds what was written, and `prompt_lengths` still says where it begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.model_info import eos_ids_of
from odesteer_tl.backends.outputs import Generation
from odesteer_tl.backends.steer import NothingSteered
from odesteer_tl.backends.tokenize import left_padded
from odesteer_tl.integrations.steered_model import SteeredModel
from odesteer_tl.portable.token_rules import chosen_by

PIECE = 16
"""Tokens of the first piece; each further piece is twice as long, as every piece reads the text anew."""


@dataclass
class Continuation:
    """The tokens written after a prompt, without that of the end, and their text up to the stop string. `ended`: by a
    stop string or the model's end ("stop"), or by `max_new_tokens`. `steered`: how many tokens of prompt and text the
    method moved, at each layer that it writes."""

    tokens: list[int]
    text: str
    ended: Literal["stop", "max_tokens"]
    steered: int


def continuations(
    steered: SteeredModel,
    prompts: Sequence[list[int]],
    until: Sequence[str],
    max_new_tokens: int,
    seed: int = 0,
    **sampling: Any,
) -> list[Continuation]:
    """What the model writes after each prompt (token ids), up to the first of the strings `until`, the end of the text
    or `max_new_tokens`. `sampling` goes to `ot.generate`; sampled texts depend on which prompts share a batch.

    Special tokens count in the search for stop strings, and are left out of the text. Raises ValueError as
    `ot.generate` does; a prompt of which no token is steered is continued, with `steered` 0.
    """
    ends = set(eos_ids_of(steered.model)) | {steered.tokenizer.eos_token_id}
    written: list[list[int]] = [[] for _ in prompts]
    found: dict[int, Continuation] = {}
    piece, done = PIECE, 0
    while len(found) < len(prompts):
        active = [row for row in range(len(prompts)) if row not in found]
        steps = min(piece, max_new_tokens - done)
        out = _piece(steered, [prompts[row] + written[row] for row in active], [len(prompts[row]) for row in active],
                     steps, seed + done, sampling)  # fmt: skip
        done, piece = done + steps, piece * 2
        for number, row in enumerate(active):
            before = len(written[row])
            new = out.tokens[number][out.mask[number]][int(out.prompt_lengths[number]) :].tolist()
            whole = written[row] + new
            end = next((n for n in range(before, len(whole)) if whole[n] in ends), None)
            text_tokens = whole if end is None else whole[:end]
            stop = _stop(steered.tokenizer, text_tokens, before, until)
            computed = len(whole) if end is None else end + 1
            if stop is not None:
                text_tokens, computed = text_tokens[:stop], stop
            written[row] = text_tokens
            if stop is None and end is None and done < max_new_tokens:
                continue
            ended: Any = "max_tokens" if stop is None and end is None else "stop"
            moved = _moved(steered, len(prompts[row]), computed)
            found[row] = Continuation(text_tokens, _text(steered.tokenizer, text_tokens, until), ended, moved)
    return [found[row] for row in range(len(prompts))]


def _piece(
    steered: SteeredModel, rows: list[list[int]], lengths: list[int], steps: int, seed: int, sampling: dict[str, Any]
) -> Generation:
    texts, how = left_padded(rows, 0), {"max_new_tokens": steps, "seed": seed, **sampling}
    try:
        return generate(steered.model, texts, prompt_lengths=lengths, **steered.steering, **how)
    except NothingSteered:
        unsteered = {name: steered.steering[name] for name in ("remote", "blocks", "batch_size")}
        return generate(steered.model, texts, **unsteered, **how)


def _moved(steered: SteeredModel, prompt: int, computed: int) -> int:
    """The tokens of a text that are steered; the model does not see the last that it writes."""
    if steered.method is None:
        return 0
    index = torch.arange(prompt + computed - 1, device="cpu").unsqueeze(0)
    return int(chosen_by(steered.positions, index, torch.tensor([prompt], device="cpu")).sum())


def _stop(tokenizer: Any, tokens: list[int], before: int, until: Sequence[str]) -> int | None:
    """The number of tokens with which the first stop string is complete; the first `before` tokens hold none."""
    strings = [string for string in until if string]
    if not strings or not _holds(tokenizer, tokens, strings):
        return None
    return next((n for n in range(before + 1, len(tokens)) if _holds(tokenizer, tokens[:n], strings)), len(tokens))


def _holds(tokenizer: Any, tokens: list[int], strings: Sequence[str]) -> bool:
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    return any(string in text for string in strings)


def _text(tokenizer: Any, tokens: list[int], until: Sequence[str]) -> str:
    """The text of the tokens before the first stop string."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min([text.find(string) for string in until if string and string in text], default=len(text))]
