"""`token_map`: what steering does to each token of some texts, as one page of HTML.

Of every token of a text: h(a) at the method's site before and after steering, ‖a(T) − a‖/‖a‖, and KL(p ‖ q) =
Σ p (log p − log q) in nats, p the unsteered distribution of the next token and q the steered one after the same text.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import PerRow, Time, TimeOrStrength, TokenIds, TokenMask
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.batches import of_rows
from odesteer_tl.backends.checks import check_mask_taken, check_place, warn_of_other_use, whole_number
from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.model_info import load_weights, model_name_of
from odesteer_tl.backends.steer import attached, check_report, edit_runner_for, warn_of_limit, warn_of_rounding
from odesteer_tl.backends.tokenize import ChatTemplate, Texts, check_context, tokenise, trimmed
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.pages.token_page import Column, ShownToken, Text, TokenPage, read_once, token_page
from odesteer_tl.interventions.positions import Positions, PromptLengths
from odesteer_tl.interventions.records import Recording
from odesteer_tl.interventions.report import Report, has_h, shown_token
from odesteer_tl.methods.calibrated import positions_name
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.next_tokens import divergence
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import lengths_of, per_row

WRITTEN = (
    "The first column holds what the model writes without steering, the second what it writes with it. Each of the two "
    "texts was then read by the model twice, without and with steering, and the numbers of a token are of the text "
    "that it stands in: the columns can be compared token by token only as far as their texts agree."
)
READ = "The texts were read by the model twice, without and with steering; nothing was generated."
MEANT = (
    "h before is h of the activation that reaches the method's site, h after that of what leaves it; displacement is "
    "‖a(T) − a‖/‖a‖ there; KL(unsteered ‖ steered) is that of the next token, which steering of earlier tokens changes "
    "too."
)


def token_map(
    model: Any,
    method: Any,
    texts: Texts,
    T: TimeOrStrength | None = None,
    *,
    relative_T: Time | None = None,
    positions: Positions = "decoding",
    prompt_lengths: PromptLengths | None = None,
    layer: int | None = None,
    max_new_tokens: int = 24,
    temperature: float = 1.0,
    top_p: float | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
    batch_size: int = 8,
    blocks: Any = None,
) -> TokenPage:
    """What steering does to each token, as one HTML file that needs no network: coloured by h before and after, by
    displacement, or by KL; steered tokens are marked, and pointing at one shows its numbers.

        page = ot.token_map(model, method, ["The film opens with"], relative_T=0.2)     # a notebook shows it
        page.save("map.html")

    The model continues `texts` without and with steering, side by side, and then reads each of the two twice, without
    and with steering: the numbers of a token are of the text that it stands in. With max_new_tokens=0 the texts are
    read as they are, and `positions` and `prompt_lengths` choose what is steered, as in positions="all". KL is in nats,
    displacement has no unit, h is the method's own. A method without a barrier h (a map, a closed loop) has no column
    h, and the page says so. Of several edits the page shows the numbers of one at a time.

    `method`, `T`, `relative_T`, `positions`, `prompt_lengths`, `layer` and `blocks` as for `steering`; a calibrated
    method needs no T. The rest as for `generate`; `batch_size` rows share a pass. Everything runs on this machine.
    Raises ValueError as they do.
    """
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=0)
    batch_size = whole_number("batch_size", batch_size)
    check_place(model, False, blocks)
    pairs = pairs_of(method, T, relative_T, layer)
    warn_of_other_use(model, method, T, relative_T, positions, layer)
    where, sides = (positions, layer, blocks, batch_size), []
    reading: dict[str, Any] = {"prepend_bos": prepend_bos, "chat_template": chat_template, "system": system}
    written: list[tuple[TokenIds, TokenMask, PerRow]] = []
    with _each_warning_once():
        warn_of_rounding(model, pairs)
        if max_new_tokens == 0:
            load_weights(model)
            read = tokenise(model, texts, **reading)
            check_context(model, read)
            written.append((read.tokens, read.mask, read.mask.sum(1)))
        else:
            reading |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
            reading |= {"batch_size": batch_size, "blocks": blocks}
            steering = {"positions": positions, "prompt_lengths": prompt_lengths, "layer": layer}
            for out in (generate(model, texts, **reading), generate(model, texts, pairs, **steering, **reading)):
                written.append((out.tokens, out.mask, out.prompt_lengths))
        for tokens, mask, lengths in written:
            ends = lengths if prompt_lengths is None else per_row(lengths_of(prompt_lengths), len(mask))
            shown = ends if max_new_tokens == 0 else lengths
            sides.append(_read(model, pairs, Tokenised(tokens, mask), ends, shown, *where))
    recording = sides[0][1]
    if max_new_tokens == 0:
        columns = [read_once(own, has_h(recording)) for own in sides[0][0]]
    else:
        titles = ("without steering", "with steering")
        columns = [
            [Column(titles[0], "before", plain), Column(titles[1], "after", steered)]
            for plain, steered in zip(sides[0][0], sides[1][0], strict=True)
        ]
    return token_page(
        [READ if max_new_tokens == 0 else WRITTEN, MEANT],
        [(edit.name, edit.formula) for edit in recording.edits],
        [Text(f"Text {number}", own) for number, own in enumerate(columns)],
        facts=_facts(model, pairs, recording, positions, [rows for rows, _ in sides]),
        continuation="after the prompt" if max_new_tokens == 0 else "generated",
        same=max_new_tokens == 0,
    )


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """A warning that the passes of the block give several times, as the same strength is used in each, is given once
    at its end, to the line that called `token_map`."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as found:
            caught = found
            yield
    finally:
        for message in {(one.category, str(one.message)): one.message for one in caught}.values():
            warnings.warn(message, stacklevel=4)  # this generator, contextlib's __exit__, token_map


@torch.no_grad()
def _read(
    model: Any,
    pairs: list[tuple[Any, Strength]],
    texts: Tokenised,
    ends: PerRow,
    lengths: PerRow,
    positions: Any,
    layer: int | None,
    blocks: Any,
    batch_size: int,
) -> tuple[list[list[ShownToken]], Recording]:
    """The tokens of each text, read without and with steering, and the recording of the last batch. `ends`: where the
    prompts end for the steering, `lengths`: for the page."""
    backend, recording = backend_of(model), Recording([])
    steered: Counter[int] = Counter()
    shown: list[list[ShownToken]] = []
    for rows in torch.arange(len(texts.mask), device="cpu").split(batch_size):
        own_part = partial(of_rows, rows=rows, count=len(texts.mask))
        batch = trimmed(Tokenised(texts.tokens[rows], texts.mask[rows]))
        check_mask_taken(model, batch.mask)
        named = own_part(positions) if isinstance(positions, Tensor) and positions.ndim == 2 else positions
        own = [(method, strength.mapped(own_part)) for method, strength in pairs]
        plain = backend.logits(model, batch)
        runner = edit_runner_for(model, own, named, ends[rows], layer, blocks, record=True)
        with attached(model, runner, blocks) as report:
            moved = backend.logits(model, batch)
        warn_of_limit(runner.at_limit, stacklevel=4)
        steered.update(report.tokens_steered)
        assert runner.recording is not None
        recording = runner.recording
        records = {
            row: [list(edits) for _, edits in groupby(of_row, key=lambda one: one.position)]
            for row, of_row in groupby(recording.tokens, key=lambda one: one.row)
        }
        for row, real in enumerate(batch.mask):
            kl = divergence(plain[row][real].log_softmax(-1), moved[row][real].log_softmax(-1)).tolist()
            tokens = [shown_token(own, len(runner.edits), cost) for own, cost in zip(records[row], kl, strict=True)]
            end = int(lengths[rows[row]])
            shown.append([token._replace(generated=token.position >= end) for token in tokens])
    check_report(Report(dict(steered)), positions, stacklevel=4)
    return shown, recording


def _facts(
    model: Any,
    pairs: list[tuple[Any, Strength]],
    recording: Recording,
    positions: Positions,
    sides: list[list[list[ShownToken]]],
) -> list[str]:
    """What was steered, and how far, in words."""
    layers: dict[tuple[str, str], list[str]] = {}
    for edit in recording.edits:
        layers.setdefault((edit.method, _said(pairs[edit.owner][1])), []).append(str(edit.layer))
    facts = []
    for (method, strength), own in layers.items():
        own = list(dict.fromkeys(own))
        facts.append(f"{method} at layer{'s' * (len(own) > 1)} {', '.join(own)}, {strength}")
    name = model_name_of(model)
    facts = ["; ".join(facts) + f"; positions: {positions_name(positions)}" + (f"; model: {name}" if name else "")]
    for side, rows in zip(("unsteered texts", "steered texts") if len(sides) == 2 else ("texts",), sides, strict=True):
        costs = [token.kl for row in rows for token in row if token.steered and token.kl is not None]
        if costs:
            mean = sum(costs) / len(costs)
            facts.append(f"{len(costs)} tokens of the {side} steered: KL of {mean:.3g} nats a token, on average")
    return facts


def _said(strength: Strength) -> str:
    """As in "relative_T = 0.2"."""
    name = "relative_T" if strength.T is None else "T"
    return f"one {name} per text" if strength.rows is not None else f"{name} = {float(strength.value):.3g}"
