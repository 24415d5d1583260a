"""Log-likelihoods of continuations after their contexts, steered or not, on this machine or on a server."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odesteer_tl._progress import bar
from odesteer_tl._shapes import PerRow, TimeOrStrength
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.checks import check_mask_taken, check_place, warn_of_other_use, whole_number
from odesteer_tl.backends.model_info import load_weights
from odesteer_tl.backends.steer import attached, edit_runner_for, warn_of_limit, warn_of_rounding
from odesteer_tl.backends.tokenize import check_context, trimmed
from odesteer_tl.data.tokens import Tokenised, places_of
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.next_tokens import likelihoods as likelihoods_in
from odesteer_tl.portable.next_tokens import log_probabilities
from odesteer_tl.portable.token_rules import checked, chosen_by


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What `likelihoods` finds.

    `tokens`: of each text, log p in nats of each of its tokens after the context, given all tokens before it. `greedy`:
    whether each is the likeliest token there. `steered` [batch]: how many tokens of each text the method moved in the
    pass, at each layer that it writes; 0 without a method.
    """

    tokens: list[Float[Tensor, " _"]]
    greedy: list[Bool[Tensor, " _"]]
    steered: PerRow
    likeliest: list[tuple[Tensor, Tensor]] | None = None
    """log p of the `top` likeliest tokens at each place and their ids, both [continuation, top]; None unless asked."""


@torch.no_grad()
def likelihoods(
    model: Any,
    texts: Tokenised,
    context_lengths: PerRow,
    method: Any = None,
    T: TimeOrStrength | None = None,
    *,
    relative_T: float | None = None,
    positions: Positions = "decoding",
    layer: int | None = None,
    top: int = 0,
    batch_size: int = 16,
    remote: bool | str = False,
    blocks: Any = None,
    progress: bool | None = None,
) -> Likelihoods:
    """log p(x_i | x_<i) of every token of the left-padded `texts` after the first `context_lengths` [batch] real ones.

    Steered by `method` as a generation of the same text would be: "decoding" steers the last token of the context and
    every token after it. The last token of a text predicts nothing, so the model does not see it, and it is not
    steered. Texts that differ in their last token alone, such as the letters of a multiple choice, are one row of a
    pass, which those of similar length share; results do not depend on that. `top`: the number of likeliest tokens to
    find at each place. Other arguments as for `ot.generate`.

    A text of which `positions` names no token is computed unsteered, and its entry in `steered` is 0. Raises ValueError
    for a context without tokens or as long as its text, for a text longer than the model's context, for `top` on a
    server, and as `steering` does; ConnectionError and RuntimeError for a server, as `ot.generate` does.
    """
    check_place(model, remote, blocks)
    if not remote:
        load_weights(model)
    lengths = texts.mask.sum(1)
    if bool((context_lengths < 1).any()) or bool((context_lengths >= lengths).any()):
        raise ValueError("Each text is a context of at least one token and a continuation of at least one more.")
    batch_size, top = whole_number("batch_size", batch_size), whole_number("top", top, 0)
    if top and remote:
        raise ValueError("top= needs the logits, which stay on the server: leave it out with remote=.")
    seen = Tokenised(texts.tokens[:, :-1], texts.mask[:, :-1])
    check_context(model, seen)
    index = seen.mask.long().cumsum(1) - 1
    named = chosen_by(checked(positions), index, context_lengths) & seen.mask
    pairs = []
    if method is not None:
        pairs = pairs_of(method, T, relative_T, layer)
        warn_of_other_use(model, method, T, relative_T, positions, layer)
        warn_of_rounding(model, pairs)
    else:
        named = torch.zeros_like(named)
    found: dict[int, list[Tensor]] = {}
    limits: dict[str, None] = {}
    alike = _alike(seen, context_lengths, named)
    firsts = torch.tensor(list(alike), device="cpu")
    for numbers in bar(
        _batches(lengths[firsts], named[firsts].any(1), batch_size), label="Log-likelihoods", progress=progress
    ):
        rows = firsts[numbers]
        batch = trimmed(Tokenised(seen.tokens[rows], seen.mask[rows]))
        width = batch.mask.shape[1]
        asked = index[rows][:, -width:].ge(context_lengths[rows].unsqueeze(1) - 1) & batch.mask
        members = [row for first in rows.tolist() for row in alike[first]]
        copies = torch.tensor([len(alike[first]) for first in rows.tolist()], device="cpu")
        of_members = asked.repeat_interleave(copies, 0)
        following = texts.tokens[members][:, -width:][of_members]
        check_mask_taken(model, batch.mask)
        where = {"positions": _of_rows(positions, rows), "prompt_lengths": context_lengths[rows], "layer": layer}
        count, steered = int(named[rows].sum()), pairs if bool(named[rows].any()) else []
        parts = _measured(
            model, batch, asked, copies, following, steered, where | {"blocks": blocks}, limits, remote, count, top
        )
        of_rows = zip(*(part.split(of_members.sum(1).tolist()) for part in parts), strict=True)
        found |= {row: list(own) for row, own in zip(members, of_rows, strict=True)}
    warn_of_limit(list(limits))
    values, greedy, *best = zip(*(found[row] for row in range(len(lengths))), strict=True)
    likeliest = list(zip(*best, strict=True)) if top else None
    return Likelihoods(list(values), list(greedy), named.sum(1), likeliest)


def _alike(seen: Tokenised, context_lengths: PerRow, named: Bool[Tensor, "batch pos"]) -> dict[int, list[int]]:
    """The rows whose passes are the same, {the first of them: all of them}."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for row, (tokens, mask, length, own) in enumerate(zip(*seen, context_lengths.tolist(), named, strict=True)):
        found.setdefault((*tokens[mask].tolist(), length, *own[mask].tolist()), []).append(row)
    return {rows[0]: rows for rows in found.values()}


def _batches(lengths: PerRow, steered: Bool[Tensor, " batch"], batch_size: int) -> list[Tensor]:
    """The rows of each pass: long ones together, and those of which no token is steered by themselves."""
    order = lengths.argsort(descending=True, stable=True)
    groups = (order[steered[order]], order[~steered[order]])
    return [rows for group in groups for rows in group.split(batch_size) if len(rows)]


def _of_rows(positions: Any, rows: Tensor) -> Any:
    return positions[rows] if isinstance(positions, Tensor) and positions.ndim == 2 else positions


def _measured(
    model: Any,
    batch: Tokenised,
    asked: Tensor,
    copies: Tensor,
    following: Tensor,
    pairs: list[Any],
    where: dict[str, Any],
    limits: dict[str, None],
    remote: bool | str,
    count: int,
    top: int,
) -> tuple[Tensor, ...]:
    """`next_tokens.likelihoods` of one batch, and the `top` likeliest tokens where there are to be any. Raises
    RuntimeError unless `count` tokens are steered at each layer."""
    backend = backend_of(model)
    rows, columns = places_of(asked, copies)
    runner = edit_runner_for(model, pairs, **where) if pairs else None
    if remote:  # making the runner has checked that the method fits
        written = [] if runner is None else list(runner.tokens_steered)
        return backend.likelihoods_remotely(
            model, batch, asked, copies, following, pairs, where, remote, written, count
        )
    if runner is None:
        logits = backend.logits(model, batch)
    else:
        with attached(model, runner, where["blocks"]) as report:
            logits = backend.logits(model, batch)
        limits |= dict.fromkeys(runner.at_limit)
        if any(found != count for found in report.tokens_steered.values()):
            raise RuntimeError(f"{count} tokens were to be steered, and {report.tokens_steered} (by layer) were.")
    found = likelihoods_in(logits, rows, columns, following)
    return (*found, *log_probabilities(logits, rows, columns).topk(top)) if top else found
