"""What steering does to the next-token distributions of an nnsight model on a server: numbers come back, no logits."""

from collections.abc import Iterable
from typing import Any

import nnsight
import torch
from torch import Tensor

from odesteer_tl._shapes import PerRow, TokenMask
from odesteer_tl.backends.nnsight.replies import effects_in, likelihoods_in, report_in
from odesteer_tl.backends.nnsight.run import OVERHEAD_BYTES, inputs_of, per_row
from odesteer_tl.backends.nnsight.server_errors import server_request
from odesteer_tl.data.tokens import Tokenised, places_of
from odesteer_tl.portable.nnsight.gather import effects_at, likelihoods_at
from odesteer_tl.portable.nnsight.intervene import intervene
from odesteer_tl.portable.strength import Strength


def effects_remotely(
    model: Any,
    batch: Tokenised,
    named: TokenMask,
    following: Tensor,
    words: Tensor,
    copies: int,
    pairs: list[tuple[Any, Strength]],
    intervene_args: dict[str, Any],
    remote: bool | str,
    written: Iterable[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """`effects` (see `next_tokens`) at the tokens of `named`, from a server: the batch unsteered, and `copies` of it
    steered there by `intervene(model, pairs, **intervene_args)`, all in one pass. The logits stay there.

    Raises as `ServerRequest` does, and RuntimeError for a reply that is not what was asked. Steered layers are
    `written`.
    """
    inputs, mask = inputs_of(model, batch)
    copied = {name: value.repeat(copies, 1) for name, value in inputs.items()}
    rows, columns = torch.zeros_like(mask).masked_scatter(mask, named[batch.mask]).nonzero(as_tuple=True)
    texts, shapes = len(mask), [(copies, len(part)) for part in (rows, mask, words)]
    remote_args = {name: per_row(value, 1) for name, value in intervene_args.items()}
    methods = [(method, strength.mapped(lambda value: per_row(value, 1))) for method, strength in pairs]
    found, steered = None, None
    server = server_request(model, remote, OVERHEAD_BYTES + 16 * sum(count * width for count, width in shapes))
    with model.trace(remote=remote, backend=server, use_cache=False) as tracer:
        with tracer.invoke(inputs):
            pass
        with tracer.invoke(copied):
            steered = nnsight.save(intervene(model, methods, **remote_args))
        with tracer.invoke():
            found = nnsight.save(effects_at(model, rows, columns, following, texts, words))
    if server is None:
        if found is None:
            raise RuntimeError("The trace saved no effects.")
        return found
    found, steered = server.named("found", "steered")
    report_in(steered, written, copies * len(rows), copies * len(rows), server.refused)
    return effects_in(found, shapes, server.refused)


def likelihoods_remotely(
    model: Any,
    batch: Tokenised,
    asked: TokenMask,
    copies: PerRow,
    following: Tensor,
    pairs: list[tuple[Any, Strength]],
    intervene_args: dict[str, Any],
    remote: bool | str,
    written: Iterable[int],
    count: int,
) -> tuple[Tensor, Tensor]:
    """`likelihoods` (see `next_tokens`) at the tokens of `asked`, of each row `copies` times, from a server, steered
    there by `intervene(model, pairs, **intervene_args)` in the same pass. The logits stay there.

    Raises as `ServerRequest` does, and RuntimeError for a reply that is not what was asked; `count` tokens are steered
    at each of the layers `written`.
    """
    inputs, mask = inputs_of(model, batch)
    rows, columns = places_of(torch.zeros_like(mask).masked_scatter(mask, asked[batch.mask]), copies)
    remote_args = {name: per_row(value, 1) for name, value in intervene_args.items()}
    found, steered, steer = None, None, bool(pairs)
    server = server_request(model, remote, OVERHEAD_BYTES + 16 * len(rows))
    with model.trace(**inputs, use_cache=False, remote=remote, backend=server):
        steered = nnsight.save(intervene(model, pairs, **remote_args) if steer else {})
        found = nnsight.save(likelihoods_at(model, rows, columns, following))
    if server is None:
        if found is None:
            raise RuntimeError("The trace saved no likelihoods.")
        return found
    found, steered = server.named("found", "steered")
    report_in(steered, written, count, count, server.refused)
    return likelihoods_in(found, len(rows), server.refused)
