"""Steering inside the user's own nnsight graph, here or on a remote server.

This file is sent to servers where odesteer_tl is not installed, so it uses torch and the other files of `portable/`
alone. A `Method` that is used in a remote trace arrives there as a `PortableMethod`.
"""

from __future__ import annotations

from typing import Any

from odesteer_tl.portable.apply_edits import PassEdits, by_place, owned_edits
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.nnsight.passes import Invoke, facts_of, selected_in
from odesteer_tl.portable.nnsight.sites import check_biases, check_site, put_at, value_at
from odesteer_tl.portable.sites import SITES
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import checked


class RemoteNamespace:
    """Stands for `ot` inside a remote trace; it has `ot.intervene` and `ot.Strength`, and nothing else."""

    def __init__(self, intervene: Any) -> None:
        self.intervene, self.Strength = intervene, Strength

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"ot.{name} is not sent to the server: inside a remote trace use ot.intervene(model, method, T=...), "
            "ot.Strength and method.steer(a, T=...); do the rest outside the trace."
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
    """Steer one forward pass of the trace in which this is called, local or remote.

        with model.trace(prompts, remote=True):
            ot.intervene(model, method, T=5.0)                     # steers the prompt's last token
        with model.generate(max_new_tokens=40) as tracer:
            with tracer.invoke(prompts):
                for _ in tracer.iter[:]:                           # without this loop only the prompt's pass is steered
                    ot.intervene(model, method, T=5.0)             # (nnsight does not run code after an open loop)
            with tracer.invoke():
                tokens = nnsight.save(tracer.result)

    `T` is a number or a tensor of one value per row of the invoke; `relative_T` means T = relative_T·‖a‖. `method` may
    be a list of (method, T). `positions` as in `ot.steering`. A trace of one pass holds the prompt alone, unless
    `prompt_lengths` (in real tokens: a number, or one per row) says that a part of it is continuation. `layer`
    overrides the fitted layer. `blocks`, for example blocks="transformer.h", names the blocks of an unknown
    architecture. Every invoke steers its own rows. Several methods at one layer act in the order of the calls. With the
    KV cache off a pass computes all tokens again, so only a loop over all steps gives the same result as with the cache
    on.

    This reads the input of the block, to find the pads, and then its output. So call it before you read anything that
    the block or a later one computes. For several layers, call it in their order, or once with a list. If a server
    fails, nnsight reports it; if a result is lost, your variables keep their old values: save under new names, or use
    `ot.generate`, which checks this.

    Returns the number of tokens steered so far in this run, per layer. Raises ValueError outside a trace, for a method
    or positions that do not fit, if a pass could be prompt or continuation and `prompt_lengths` is not given, and if a
    batch may be padded and the pads cannot be read.
    """
    pairs = pairs_of(method, T, relative_T, layer)
    rule, worker = checked(positions), _worker(model)
    invoke = worker.worker.__dict__.setdefault("odesteer_tl", Invoke())  # of this run
    block_list, owned = invoke.blocks_of(model, blocks), []
    for number, (part, strength) in enumerate(pairs):
        _check_processing(part)
        part_edits = owned_edits(number, part, strength, layer)
        for owned_edit in part_edits:
            _check_sites(owned_edit.edit, block_list, _fitted_on(part))
        owned += part_edits
    edits = None
    for (index, site), edits_here in by_place(owned).items():
        block, name = block_list[index], SITES[site]
        facts = facts_of(model, worker, invoke, block, index)
        value = value_at(block, name)
        if type(value).__name__ == "FakeTensor":  # model.scan: shapes without numbers
            continue
        if edits is None:
            _check_rows(worker, len(value))
            needs_prompt_end = any(owned_edit.edit.of_query is not None for owned_edit in owned)
            selection = selected_in(worker, invoke, facts, block, value, rule, prompt_lengths, needs_prompt_end)
            prompt_caches = invoke.prompt_caches_of([part for part, _ in pairs], owned)
            edits = PassEdits(owned, selection, prompt_caches, invoke.tally)
        new = edits.act(edits_here, value)
        if new is not None:
            put_at(block, name, new)
    return dict(invoke.tally.totals)


def _worker(model: Any) -> Any:
    """nnsight's mediator of the running invoke. Its class is taken from an instance, because code on a server may not
    import nnsight."""
    running = getattr(getattr(model, "interleaver", None), "mediators", None)
    if not running:
        raise ValueError(
            "ot.intervene works inside a trace of an nnsight model: with model.trace(prompt): ot.intervene(model, "
            "method, T). Around other models, and other traces, use ot.steering."
        )
    return type(running[0]).current("ot.intervene")


def _check_processing(method: Any) -> None:
    """Raise ValueError for a method fitted on centred weights: nnsight models, here or on a server, have raw
    weights."""
    if _fitted_on(method) == "centred":
        raise ValueError(
            "The method was fitted on centred weights and nnsight has raw weights, so the residual streams differ: "
            "collect on this model."
        )


def _fitted_on(method: Any) -> str:
    own = getattr(method, "processing", None)
    return own or getattr(getattr(method, "origin", None), "processing", "unknown")


def _check_sites(edit: Any, block_list: Any, fitted: str) -> None:
    for site in (edit.read, edit.write):
        if not 0 <= site.layer < len(block_list):
            raise ValueError(f"Layer {site.layer} does not exist: give a layer from 0 to {len(block_list) - 1}.")
        check_site(block_list[site.layer], site.name)
        check_biases(block_list[site.layer]._module, site.name, fitted, "raw")


def _check_rows(worker: Any, batch: int) -> None:
    """Raise ValueError under a beam search over several invokes: nnsight gives every invoke the rows of all, and these
    would be steered several times."""
    batcher, group = worker.interleaver.batcher, worker.batch_group
    if batcher is not None and batcher.batching and group is not None and batch != group[1]:
        raise ValueError(
            f"This invoke has {group[1]} rows and is given {batch}: with num_beams, put all prompts into one invoke."
        )
