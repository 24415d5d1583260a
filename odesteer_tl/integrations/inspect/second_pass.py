"""What a written text's tokens were worth and what steering did to them: one more pass over prompt and text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from odesteer_tl.backends.likelihoods import likelihoods
from odesteer_tl.backends.steer import NothingSteered, steering
from odesteer_tl.backends.tokenize import left_padded
from odesteer_tl.integrations.steered_model import SteeredModel


@dataclass
class Read:
    """Of one text: log p of its tokens as steered; the likeliest tokens at each, as (id, log p); what each edit did."""

    logprobs: list[float] = field(default_factory=list)
    likeliest: list[list[tuple[int, float]]] | None = None
    edits: list[dict[str, Any]] = field(default_factory=list)


def read_again(
    steered: SteeredModel, prompts: Sequence[list[int]], written: Sequence[list[int]], top: int, record: bool
) -> list[Read]:
    """Read each written text after its prompt, both token ids, steered as it was when it was written.

    `top`: the number of likeliest tokens; `record`: whether h and displacements are measured. Raises ValueError for
    either on a server.
    """
    if steered.remote and (record or top):
        raise ValueError("Logits and activations stay on the server: leave out record and top_logprobs with remote.")
    found = [Read() for _ in prompts]
    rows = [row for row, tokens in enumerate(written) if tokens]
    rows.sort(key=lambda row: -len(prompts[row]) - len(written[row]))  # as they stand in the pass
    if not rows:
        return found
    texts = left_padded([prompts[row] + written[row] for row in rows], 0)
    lengths = torch.tensor([len(prompts[row]) for row in rows], device="cpu")
    passed: dict[Any, list[int]] = {}  # the rows of the pass: `likelihoods` shows the model equal ones once
    for row in rows:
        passed.setdefault((len(prompts[row]), *prompts[row], *written[row][:-1]), []).append(row)
    where = {"remote": steered.remote, "blocks": steered.blocks, "top": top, "batch_size": len(rows)}
    if record and steered.method is not None:
        block = _recording(steered, torch.tensor([length for length, *_ in passed], device="cpu"))
    else:
        block = nullcontext()
        if steered.method is not None:
            where |= steered.steering | {"batch_size": len(rows)}
    with block as report:
        read = likelihoods(steered.model, texts, lengths, **where)
    for number, row in enumerate(rows):
        found[row].logprobs = read.tokens[number].tolist()
        if read.likeliest is not None:
            values, ids = read.likeliest[number]
            found[row].likeliest = [
                list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)
            ]
    for same, records in zip(passed.values(), _by_row(report, len(passed)), strict=True):
        for row in same:
            found[row].edits = records
    return found


@contextmanager
def _recording(steered: SteeredModel, lengths: Tensor) -> Iterator[Any]:
    """`ot.steering` with record=True. Nothing steered is no error here: the caller counts and logs it."""
    block = steering(steered.model, steered.method, steered.strength, positions=steered.positions,
                     prompt_lengths=lengths, layer=steered.layer, blocks=steered.blocks, record=True)  # fmt: skip
    with suppress(NothingSteered), block as report:
        yield report


def _by_row(report: Any, count: int) -> list[list[dict[str, Any]]]:
    """Per row, for each edit: where, how many tokens, and means over them of displacement and of h before and after."""
    rows: list[dict[int, list[Any]]] = [{} for _ in range(count)]
    for one in [] if report is None else report.records:
        rows[one.row].setdefault(one.edit, []).append(one)
    return [[_said(of_edit) for _, of_edit in sorted(edits.items())] for edits in rows]


def _said(records: list[Any]) -> dict[str, Any]:
    first, said = records[0], {"displacement": fmean(one.displacement for one in records)}
    if first.h_before is not None:
        said |= {"h_before": fmean(one.h_before for one in records), "h_after": fmean(one.h_after for one in records)}
    where = {"method": first.method, "layer": first.layer, "site": first.site, "tokens": len(records)}
    return where | {name: round(value, 6) for name, value in said.items()}
