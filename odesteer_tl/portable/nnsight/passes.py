"""The passes of an nnsight invoke: which one runs, its mask and cache, and which of its tokens are steered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odesteer_tl.portable.apply_edits import OwnedEdit, Selection, Tally, selected
from odesteer_tl.portable.model_inputs import named, unread
from odesteer_tl.portable.nnsight.blocks import blocks_of, real_tokens
from odesteer_tl.portable.nnsight.sites import entering
from odesteer_tl.portable.prompt_cache import PromptCache
from odesteer_tl.portable.sites import place_of
from odesteer_tl.portable.token_rules import is_unambiguous, lengths_of, per_row
from odesteer_tl.portable.token_tracks import Pass, TokenTrack, follow


class Invoke:
    """The state of an invoke over the passes of a run. `pass_number`: the index of the present pass, as nnsight counts
    the visits of a block. `tokens`: its token track. `library`: the library that made the model. `tally`: the
    counts."""

    def __init__(self) -> None:
        self.pass_number: int | None = None
        self.tokens: TokenTrack | None = None
        self.library: str | None = None
        self.tally = Tally()
        self._blocks_argument, self._blocks = self, None  # `self` stands for "not asked yet": None is a valid argument
        self._prompt_caches: dict[Any, PromptCache] = {}
        self._turns: dict[Any, int] = {}
        self._methods: dict[int, Any] = {}

    def blocks_of(self, model: Any, blocks: Any) -> Any:
        """The decoder blocks for the argument `blocks`; the last result is cached."""
        if self._blocks_argument is not blocks:
            self._blocks_argument, self._blocks = blocks, blocks_of(model, blocks)
        return self._blocks

    def begins(self, number: int, tokens: TokenTrack) -> None:
        """Record that a pass begins."""
        self.pass_number, self.tokens, self._turns = number, tokens, {}

    def prompt_caches_of(self, methods: list[Any], owned: list[OwnedEdit]) -> dict[int, PromptCache]:
        """The prompt caches of the edits with `of_query`, by number of the edit. If a method is called several times in
        a pass, each call reads what the last one wrote, so each call has its own cache."""
        caches = {}
        for number, owned_edit in enumerate(owned):
            if owned_edit.edit.of_query is not None:
                method = methods[owned_edit.owner]
                self._methods[id(method)] = method  # keeps it alive, so that no other object gets its id
                key = id(method), *place_of(owned_edit.edit.read)
                self._turns[key] = self._turns.get(key, 0) + 1
                caches[number] = self._prompt_caches.setdefault((*key, self._turns[key]), PromptCache())
        return caches


def facts_of(model: Any, worker: Any, invoke: Invoke, block: Any, layer: int) -> tuple[Tensor | None, int] | None:
    """(real tokens, cached columns) of a new pass, read from the block's inputs. None if the pass is already known, or
    the model is past the block's input. Raises ValueError for a pass that begins anew in the middle of a run, as
    happens if the model has a cache that cannot be seen."""
    pass_number = worker.wanted(f"{block.path}.output")
    if invoke.pass_number == pass_number or worker.occurrence(f"{block.path}.input") > pass_number:
        return None
    inputs = block.inputs
    value = entering(inputs)
    if type(value).__name__ == "FakeTensor":
        return None
    batch, width = value.shape[:2]
    track = invoke.tokens
    invoke.library = library = invoke.library or _library(model)
    real, cached = real_tokens(inputs, batch, width, layer, None if track is None else track.columns, library)
    if track is not None and (cached > track.columns or (cached == 0 and width <= track.columns)):
        raise unread(
            named(*inputs),
            library,
            f"{track.columns} tokens of these rows were seen, and this pass of {width} tokens says that "
            f"{cached} come before it",
        )
    return real, cached


def selected_in(
    worker: Any, invoke: Invoke, facts: Any, block: Any, value: Tensor, rule: Any, lengths: Any, needs_prompt_end: bool
) -> Selection:
    """The tokens to steer in the running pass. If it is new, this advances the token track of the invoke."""
    batch, width = value.shape[:2]
    prompt_lengths = None if lengths is None else per_row(lengths_of(lengths), batch)
    pass_number, track = worker.wanted(f"{block.path}.output"), invoke.tokens
    if track is None or invoke.pass_number != pass_number:
        mask, cached = facts if facts is not None else _inferred(track, batch, width)
        current = Pass(batch, width, cached, mask=mask, continues=track is not None)
        track = follow(track, current, prompt_lengths, is_unambiguous(rule, prompt_lengths, needs_prompt_end))
        invoke.begins(pass_number, track)
    if not track.known and (prompt_lengths is not None or not isinstance(rule, str)):
        raise ValueError(
            "The cache was filled before this trace, with a batch that may be padded, so the positions of the tokens "
            "are not known: fill it inside the trace, or steer one row at a time."
        )
    return selected(rule, track, track.lengths if prompt_lengths is None else prompt_lengths)


def _inferred(track: TokenTrack | None, batch: int, width: int) -> tuple[Tensor | None, int]:
    """(mask, cached columns) of a pass whose block inputs were not read: from the previous pass, or because one row
    alone has no pads. Raises ValueError where this is not possible."""
    if track is not None and width == 1:
        return None, track.columns
    if track is not None and width == track.columns + 1 and not track.ragged:
        return torch.arange(width, device="cpu") >= track.pads.unsqueeze(1), 0
    if track is None and (batch == 1 or width == 1):
        return None, 0
    raise ValueError(
        "The pads are read from the input of the block, which has already run: call ot.intervene before you read what "
        "this layer computes."
    )


def _library(model: Any) -> str:
    """The library that made the model, with the version in its configuration, and the class of the model."""
    name = type(model._module).__module__.partition(".")[0]
    config = getattr(model._module, "config", None)
    to_dict = getattr(config, "to_dict", None)
    version = None if to_dict is None else to_dict().get("transformers_version")
    return f"{name} {version or ''}".strip() + f" ({type(model._module).__name__})"
