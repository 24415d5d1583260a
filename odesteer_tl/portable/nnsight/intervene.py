"""Steering inside the user's own nnsight graph, here or on a remote server.

This file travels: what is in it runs where odesteer_tl is not installed, so it uses torch, and of the package only
functions that travel as well. A `Method` that is mentioned in a remote trace arrives there as a `PortableMethod`.
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
    """What `ot` is inside a remote trace: `ot.intervene` and `ot.Strength`, and nothing else."""

    def __init__(self, intervene: Any) -> None:
        self.intervene, self.Strength = intervene, Strength

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
        with model.generate(max_new_tokens=40) as tracer:
            with tracer.invoke(prompts):
                for _ in tracer.iter[:]:                           # without it only the prompt's pass is steered
                    ot.intervene(model, method, T=5.0)             # (nnsight does not run what follows an open loop)
            with tracer.invoke():
                tokens = nnsight.save(tracer.result)

    `T` is a number or a tensor of one value per row of the invoke; `relative_T` means T = relative_T·‖a‖. `method` may
    be a list of (method, T). `positions` as in `ot.steering`: a trace of one pass holds the prompt alone unless
    `prompt_lengths` (real tokens: a number, or one per row) says that some of it is continuation. `layer` overrides
    the fitted layer; `blocks` as in blocks="transformer.h" finds the blocks of an unknown architecture. Every invoke
    steers its own rows. Several methods at one layer act in the order of the calls. With the KV cache off a pass
    computes all tokens anew, so that only a loop over all steps steers as it does with the cache on.

    It reads what enters the block, to tell pads, and then its output: call it before you read what the block computes,
    or what comes after, and for several layers in their order, or once with a list. What goes wrong on a server is
    nnsight's to say here, and a result that is lost leaves your names as they were: save under new ones, or use
    `ot.generate`, which checks.

    Returns the number of tokens steered so far in this run, per layer. Raises ValueError outside a trace, for a method
    or positions that do not fit, where a pass could be prompt or continuation and `prompt_lengths` does not say, and
    where a batch may be padded and cannot be asked.
    """
    pairs = pairs_of(method, T, relative_T, layer)
    rule, worker = checked(positions), _worker(model)
    invoke = worker.worker.__dict__.setdefault("odesteer_tl", Invoke())  # of this run
    found, owned = invoke.blocks_of(model, blocks), []
    for number, (each, strength) in enumerate(pairs):
        _check_processing(each)
        own = owned_edits(number, each, strength, layer)
        for one in own:
            _check_sites(one.edit, found, _fitted_on(each))
        owned += own
    edits = None
    for (at, number_in_block), here in by_place(owned).items():
        block, name = found[at], SITES[number_in_block]
        facts = facts_of(model, worker, invoke, block, at)
        value = value_at(block, name)
        if type(value).__name__ == "FakeTensor":  # model.scan: shapes without numbers
            continue
        if edits is None:
            _check_rows(worker, len(value))
            needs_prompt_end = any(one.edit.of_query is not None for one in owned)
            selection = selected_in(worker, invoke, facts, block, value, rule, prompt_lengths, needs_prompt_end)
            answers = invoke.answers_of([each for each, _ in pairs], owned)
            edits = PassEdits(owned, selection, answers, invoke.tally)
        new = edits.act(here, value)
        if new is not None:
            put_at(block, name, new)
    return dict(invoke.tally.totals)


def _worker(model: Any) -> Any:
    """nnsight's mediator of the invoke that is running. Its class is reached through an instance, as a server may not
    import nnsight for what it is sent."""
    running = getattr(getattr(model, "interleaver", None), "mediators", None)
    if not running:
        raise ValueError(
            "ot.intervene works inside a trace of an nnsight model: with model.trace(prompt): ot.intervene(model, "
            "method, T). Around other models, and other traces, use ot.steering."
        )
    return type(running[0]).current("ot.intervene")


def _check_processing(method: Any) -> None:
    """A server has raw weights, as nnsight has."""
    if _fitted_on(method) == "centred":
        raise ValueError(
            "The method was fitted on centred weights, nnsight holds raw ones, so that its residual stream differs: "
            "collect on this model."
        )


def _fitted_on(method: Any) -> str:
    own = getattr(method, "processing", None)
    return own or getattr(getattr(method, "origin", None), "processing", "unknown")


def _check_sites(edit: Any, found: Any, fitted: str) -> None:
    for site in (edit.read, edit.write):
        if not 0 <= site.layer < len(found):
            raise ValueError(f"layer={site.layer} does not exist: this model has layers 0 to {len(found) - 1}.")
        check_site(found[site.layer], site.name)
        check_biases(found[site.layer]._module, site.name, fitted, "raw")


def _check_rows(worker: Any, batch: int) -> None:
    """Under a beam search nnsight gives the rows of all invokes to each, and all would be steered several times."""
    batcher, group = worker.interleaver.batcher, worker.batch_group
    if batcher is not None and batcher.batching and group is not None and batch != group[1]:
        raise ValueError(
            f"This invoke has {group[1]} rows and is given {batch}: with num_beams, put all prompts into one invoke."
        )
