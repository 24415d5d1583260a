"""Steering inside the user's own nnsight graph, here or on a remote server.

This file travels: what is in it runs where odesteer_tl is not installed, so it uses torch, and of the package only
functions that travel as well. A `Method` that is mentioned in a remote trace arrives there as a `PortableMethod`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.apply_edits import OwnedEdit, PassEdits, Selection, Tally, by_place, owned_edits, selected
from odesteer_tl.portable.model_inputs import named, unread
from odesteer_tl.portable.nnsight.blocks import blocks_of, real_tokens
from odesteer_tl.portable.nnsight.sites import check_biases, check_site, entering, put_at, value_at
from odesteer_tl.portable.strength import SITES, pairs_of, place_of
from odesteer_tl.portable.token_rules import checked, is_unambiguous, per_row
from odesteer_tl.portable.token_tracking import Pass, PromptCache, TokenTrack, follow


class RemoteNamespace:
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
        own = owned_edits(number, each, strength, relative_T, layer)
        for one in own:
            _check_sites(one.edit, found, _fitted_on(each))
        owned += own
    edits = None
    for (at, number_in_block), here in by_place(owned).items():
        block, name = found[at], SITES[number_in_block]
        facts = _facts(model, worker, invoke, block, at)
        value = value_at(block, name)
        if type(value).__name__ == "FakeTensor":  # model.scan: shapes without numbers
            continue
        if edits is None:
            _check_rows(worker, len(value))
            needs_prompt_end = any(one.edit.of_query is not None for one in owned)
            selection = _selected(worker, invoke, facts, block, value, rule, prompt_lengths, needs_prompt_end)
            answers = invoke.answers_of([each for each, _ in pairs], owned)
            edits = PassEdits(owned, selection, answers, invoke.tally)
        new = edits.act(here, value)
        if new is not None:
            put_at(block, name, new)
    return dict(invoke.tally.totals)


class Invoke:
    """What is known of an invoke from pass to pass of a run: `pass_number`, which visit of a block the present one
    is; `tokens`, where that stands; `library`, who made the model; `tally`, what was steered."""

    def __init__(self) -> None:
        self.pass_number: int | None = None
        self.tokens: TokenTrack | None = None
        self.library: str | None = None
        self.tally = Tally()
        self._asked, self._blocks = self, None  # no list of blocks is that
        self._answers: dict[Any, PromptCache] = {}
        self._turns: dict[Any, int] = {}
        self._methods: dict[int, Any] = {}

    def blocks_of(self, model: Any, blocks: Any) -> Any:
        """The decoder blocks, found once for each `blocks`."""
        if self._asked is not blocks:
            self._asked, self._blocks = blocks, blocks_of(model, blocks)
        return self._blocks

    def begins(self, number: int, tokens: TokenTrack) -> None:
        """A pass begins."""
        self.pass_number, self.tokens, self._turns = number, tokens, {}

    def answers_of(self, methods: list[Any], owned: list[OwnedEdit]) -> dict[int, PromptCache]:
        """By number of the edits: what was made of the prompts. A method may be called several times in a pass, where
        it reads what the call before wrote, so that each time has answers of its own."""
        found = {}
        for number, each in enumerate(owned):
            if each.edit.of_query is not None:
                method = methods[each.owner]
                self._methods[id(method)] = method  # so that no other gets its id
                key = id(method), *place_of(each.edit.read)
                self._turns[key] = self._turns.get(key, 0) + 1
                found[number] = self._answers.setdefault((*key, self._turns[key]), PromptCache())
        return found


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


def _facts(model: Any, worker: Any, invoke: Invoke, block: Any, at: int) -> tuple[Tensor | None, int] | None:
    """What the block's inputs say of a pass that is met for the first time: its real tokens, and how many columns are
    cached. None where the pass is known, or the model is past the block's input. Raises ValueError for a pass that
    begins anew where the run goes on, as where a cache is there and cannot be seen."""
    now = worker.wanted(f"{block.path}.output")
    if invoke.pass_number == now or worker.occurrence(f"{block.path}.input") > now:
        return None
    inputs = block.inputs
    value = entering(inputs)
    if type(value).__name__ == "FakeTensor":
        return None
    batch, width = value.shape[:2]
    before = invoke.tokens
    invoke.library = made = invoke.library or _library(model)
    real, cached = real_tokens(inputs, batch, width, at, None if before is None else before.columns, made)
    if before is not None and (cached > before.columns or (cached == 0 and width <= before.columns)):
        raise unread(
            named(*inputs),
            made,
            f"{before.columns} tokens of these rows were seen, and this pass of {width} tokens says that "
            f"{cached} come before it",
        )
    return real, cached


def _library(model: Any) -> str:
    """Which library made the model, with the version that it writes into its configurations."""
    name = type(model._module).__module__.partition(".")[0]
    config = getattr(model._module, "config", None)
    told = getattr(config, "to_dict", None)
    said = None if told is None else told().get("transformers_version")
    return f"{name} {said or ''}".strip() + f" ({type(model._module).__name__})"


def _selected(
    worker: Any, invoke: Invoke, facts: Any, block: Any, value: Tensor, rule: Any, lengths: Any, needs_prompt_end: bool
) -> Selection:
    """The tokens to steer in the pass under way, which may be met for the first time."""
    batch, width = value.shape[:2]
    given = None if lengths is None else per_row(lengths, batch)
    now, tokens = worker.wanted(f"{block.path}.output"), invoke.tokens
    if tokens is None or invoke.pass_number != now:
        mask, cached = facts if facts is not None else _guessed(tokens, batch, width)
        step = Pass(batch, width, cached, mask=mask, continues=tokens is not None)
        tokens = follow(tokens, step, given, is_unambiguous(rule, given, needs_prompt_end))
        invoke.begins(now, tokens)
    if not tokens.known and (given is not None or not isinstance(rule, str)):
        raise ValueError(
            "The cache was filled before this trace, with a batch that may be padded: which position a token has is "
            "not known. Fill it inside the trace, or steer one row at a time."
        )
    return selected(rule, tokens, tokens.lengths if given is None else given)


def _guessed(before: TokenTrack | None, batch: int, width: int) -> tuple[Tensor | None, int]:
    """What follows of a pass whose block's input was not read: from the pass before, or because there is one row."""
    if before is not None and width == 1:
        return None, before.columns
    if before is not None and width == before.columns + 1 and not before.ragged:
        return torch.arange(width) >= before.pads.unsqueeze(1), 0
    if before is None and (batch == 1 or width == 1):
        return None, 0
    raise ValueError(
        "Which of these tokens are pads is told by what enters the block: call ot.intervene before you read what this "
        "layer computes."
    )
