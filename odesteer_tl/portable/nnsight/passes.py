"""The passes of an invoke: which one runs, what the block's inputs say of it, and which of its tokens are steered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.apply_edits import OwnedEdit, Selection, Tally, selected
from odesteer_tl.portable.model_inputs import named, unread
from odesteer_tl.portable.nnsight.blocks import blocks_of, real_tokens
from odesteer_tl.portable.nnsight.sites import entering
from odesteer_tl.portable.sites import place_of
from odesteer_tl.portable.token_rules import is_unambiguous, lengths_of, per_row
from odesteer_tl.portable.token_tracking import Pass, PromptCache, TokenTrack, follow


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


def facts_of(model: Any, worker: Any, invoke: Invoke, block: Any, at: int) -> tuple[Tensor | None, int] | None:
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


def selected_in(
    worker: Any, invoke: Invoke, facts: Any, block: Any, value: Tensor, rule: Any, lengths: Any, needs_prompt_end: bool
) -> Selection:
    """The tokens to steer in the pass under way, which may be met for the first time."""
    batch, width = value.shape[:2]
    given = None if lengths is None else per_row(lengths_of(lengths), batch)
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


def _library(model: Any) -> str:
    """Which library made the model, with the version that it writes into its configurations."""
    name = type(model._module).__module__.partition(".")[0]
    config = getattr(model._module, "config", None)
    told = getattr(config, "to_dict", None)
    said = None if told is None else told().get("transformers_version")
    return f"{name} {said or ''}".strip() + f" ({type(model._module).__name__})"
