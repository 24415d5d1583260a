"""Steering inside the user's own nnsight graph, here or on a remote server.

This file travels: what is in it runs where odesteer_tl is not installed, so it uses torch, and of the package only
functions that travel as well. A `Method` that is mentioned in a remote trace arrives there as a `Travelling`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.backends.nnsight.blocks import blocks_of, output_with, real_tokens, value_in
from odesteer_tl.travelling import State, chosen_by


class Face:
    """What `ot` is inside a remote trace: `ot.intervene`, and nothing else."""

    def __init__(self, intervene: Any) -> None:
        self.intervene = intervene

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"ot.{name} does not travel: inside a remote trace there is ot.intervene(model, method, T=...), and "
            "method.steer(a, T=...); do the rest outside the trace."
        )


def intervene(
    model: Any,
    method: Any,
    T: Any = None,
    *,
    relative_T: Any = None,
    positions: Any = "decoding",
    prompt_lengths: Any = None,
    layer: int | None = None,
    blocks: Any = None,
) -> dict[int, int]:
    """Steer one forward pass of the trace that this is called in, local or remote; compose it with what you like.

        with model.trace(prompts, remote=True):
            ot.intervene(model, method, T=5.0)                     # the last token: of a single pass, the prompt's
        with model.generate(prompts, max_new_tokens=40) as tracer:
            for _ in tracer.iter[:]:                               # without it only the prompt's pass is steered
                ot.intervene(model, method, T=5.0)

    `T` is a number or a tensor of one value per row of the invoke; `relative_T` means T = relative_T·‖a‖. `method` may
    be a list of (method, T). `positions` as in `ot.steering`: a trace of one pass holds the prompt alone unless
    `prompt_lengths` (real tokens: a number, or one per row) says that some of it is continuation. `layer` overrides
    the fitted layer; `blocks` as in blocks="transformer.h" finds the blocks of an unknown architecture. It reads the
    block's input and its output, so call it before anything that the model computes after those. Every invoke steers
    its own rows; with several methods at one layer, the order of the calls is the order of the edits.

    Returns the number of tokens steered so far in this run, per layer. Raises ValueError outside a trace, for a method
    that does not fit, and where a pass could be prompt or continuation and `prompt_lengths` does not say.
    """
    pairs = list(method) if isinstance(method, (list, tuple)) else [(method, T)]
    if isinstance(method, (list, tuple)) and (T is not None or relative_T is not None or not pairs):
        raise ValueError("A list of methods carries its strengths: [(method_a, 5.0), (method_b, 2.0)], and no T.")
    worker = _worker(model)
    found = blocks_of(model, blocks)
    edits = []
    for number, (each, strength) in enumerate(pairs):
        edits += [(number, edit) for edit in each.edits(T=strength, relative_T=relative_T, layer=layer)]
    for _, edit in edits:
        _check_sites(edit, len(found))
    memory = worker.worker.__dict__.setdefault("odesteer_tl", {"steered": {}})  # of this run and of this invoke
    places = {(site.layer, site.name == "resid_post") for _, edit in edits for site in (edit.read, edit.write)}
    chosen, read, states = None, {}, {}
    for at, after in sorted(places):
        block = found[at]
        facts = _facts(worker, memory, block, at)
        value = value_in(block.output) if after else _entering(block.inputs)
        _check_rows(worker, [relative_T, *(strength for _, strength in pairs)], len(value))
        if chosen is None:
            chosen = _chosen(memory, facts, value, positions, prompt_lengths)
        rows, columns, index = chosen
        where, changed = (rows.to(value.device), columns.to(value.device)), False
        for order, (number, edit) in enumerate(edits):
            if (edit.read.layer, edit.read.name == "resid_post") == (at, after):
                read[order] = value[where]
            if (edit.write.layer, edit.write.name == "resid_post") == (at, after) and len(rows):
                state = states.setdefault(number, State(where[0]))
                new = edit.apply(read[order].to(value.device), value[where], state)
                value, changed = value.index_put(where, new.to(value)), True
                memory["steered"].setdefault(at, set()).update(zip(rows.tolist(), index.tolist(), strict=True))
        if changed and after:
            block.output = output_with(block.output, value)
        elif changed:
            block.input = value
    return {at: len(steered) for at, steered in memory["steered"].items()}


def _worker(model: Any) -> Any:
    """nnsight's mediator of the invoke that is running. Its class is reached through an instance, as a server may not
    import nnsight for what it is sent."""
    running = model.interleaver.mediators
    if not running:
        raise ValueError("ot.intervene works inside a trace: with model.trace(prompt): ot.intervene(model, method, T)")
    return type(running[0]).current("ot.intervene")


def _check_sites(edit: Any, layers: int) -> None:
    for site in (edit.read, edit.write):
        if site.name not in ("resid_pre", "resid_post"):
            raise ValueError(f"In an nnsight model resid_pre and resid_post are read and written, not {site.name}.")
        if not 0 <= site.layer < layers:
            raise ValueError(f"layer={site.layer} does not exist: this model has layers 0 to {layers - 1}.")


def _check_rows(worker: Any, strengths: list[Any], batch: int) -> None:
    """Under a beam search nnsight gives the rows of all invokes to each, and all would be steered several times."""
    batcher, group = worker.interleaver.batcher, worker.batch_group
    if batcher is not None and batcher.batching and group is not None and batch != group[1]:
        raise ValueError(
            f"This invoke has {group[1]} rows and is given {batch}: with num_beams, put all prompts into one invoke."
        )
    for strength in strengths:
        if isinstance(strength, Tensor) and strength.ndim and len(strength) != batch:
            raise ValueError(f"T holds {len(strength)} values, the model sees {batch} rows: T needs one value per row.")


def _entering(inputs: Any) -> Tensor:
    """The residual stream that enters a block."""
    args, kwargs = inputs
    return args[0] if args else kwargs["hidden_states"]


def _facts(worker: Any, memory: dict[str, Any], block: Any, at: int) -> tuple[Tensor | None, int] | None:
    """What the block's inputs say of the present pass: its real tokens, and how many columns are cached. None where
    the model is past the block's input and nobody has asked before."""
    now = worker.wanted(f"{block.path}.output")
    if memory.get("pass") != now:
        if worker.occurrence(f"{block.path}.input") > now:
            return None
        inputs = block.inputs
        batch, width = _entering(inputs).shape[:2]
        memory["pass"], memory["facts"] = now, real_tokens(inputs, batch, width, at)
    return memory["facts"]


def _chosen(
    memory: dict[str, Any], facts: tuple[Tensor | None, int] | None, value: Tensor, positions: Any, prompt_lengths: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and positions of the tokens to steer, on the CPU. The first pass of a run tells each row's prompt
    and pads; those that follow need no mask, and no synchronisation where they hold one token."""
    batch, width = value.shape[:2]
    if facts is None and "lengths" not in memory:
        if positions != "decoding" or prompt_lengths is not None:
            raise ValueError(
                "Which of these tokens are pads is told by what enters the block: call ot.intervene before you read "
                "what this layer computes."
            )
        facts = None, 0  # pads are on the left, where nnsight puts them, and the last token of every row is real
    mask, cached = facts if facts is not None else (None, memory["columns"] if width == 1 else 0)
    if cached and width > 1 and prompt_lengths is None and isinstance(positions, str) and positions != "all":
        raise ValueError(
            f"A pass of {width} tokens follows {cached} cached ones: is it prompt or continuation? Pass "
            "prompt_lengths= (real tokens of each prompt) to say so."
        )
    if cached and "pads" not in memory and not isinstance(positions, str):
        raise ValueError("Positions are counted from the first pass: steer from there on, for _ in tracer.iter[:].")
    pads = memory.get("pads", torch.zeros(batch, dtype=torch.long))
    if cached:
        real = torch.ones(batch, width, dtype=torch.bool)
        index = (cached - pads).unsqueeze(1) + torch.arange(width)
    else:
        real = torch.ones(batch, width, dtype=torch.bool) if mask is None else mask.cpu()
        index = real.long().cumsum(1) - 1
    if "lengths" not in memory:
        memory["lengths"] = cached - pads if cached else real.sum(1)  # what was cached before counts as prompt
        memory["pads"] = pads if cached else (index < 0).sum(1)
    memory["columns"] = cached + width
    lengths = memory["lengths"] if prompt_lengths is None else torch.as_tensor(prompt_lengths).cpu().expand(batch)
    chosen = chosen_by(positions, index, lengths) & real
    rows, columns = chosen.nonzero(as_tuple=True)
    return rows, columns, index[rows, columns]
