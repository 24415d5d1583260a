"""The strength, or the prefix, at which a row of a comparison spends each budget of KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.generate import generate
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.evaluation.continuations import Setting, Steerer, after_prompts, first_of
from odesteer_tl.evaluation.divergence import SteeredTexts, divergence_between
from odesteer_tl.evaluation.entries import Prompted
from odesteer_tl.evaluation.root_search import first_crossing, near_crossing, spends
from odesteer_tl.evaluation.strength_search import search_of, strength_of
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.strength import Strength

Tried = TypeVar("Tried", float, str)
"""A strength, or a prefix."""
BATCH = 24
"""Rows that share a forward pass while strengths are measured."""


@dataclass(frozen=True)
class Level:
    """What spends a `budget`: a strength, as T or relative_T, or a `prefix`. `kl` is what it costs on the validation
    prompts, both in nats; `reached`: within 5 % of the budget."""

    budget: float
    kl: float
    reached: bool
    T: float | None = None
    relative_T: float | None = None
    prefix: str = ""

    @property
    def strength(self) -> Strength | None:
        """The strength; None for a prefix."""
        return None if self.prefix else Strength(self.T, self.relative_T)


def unsteered_texts(setting: Setting) -> SteeredTexts:
    """The model's own greedy continuations of the validation prompts, on which every strength is measured."""
    written = generate(
        setting.model, setting.validation_prompts, max_new_tokens=setting.max_new_tokens, chat_template=setting.chat
    )
    return SteeredTexts.of(setting.model, written)


class Costs:
    """What steering costs on texts that the model wrote unsteered, by the value of the strength. Methods that take
    turns have one strength, and take turns over the texts too."""

    def __init__(
        self,
        texts: SteeredTexts,
        layer: int,
        steerer: Steerer,
        positions: Positions = "decoding",
        relative: bool | None = None,
    ) -> None:
        """`layer`: where methods of one site steer. `relative`: whether the values are of relative_T; None: where the
        method's T is a length."""
        methods = steerer if isinstance(steerer, tuple) else (steerer,)
        turns = methods[: len(texts.named)]  # there may be fewer texts than methods
        self._parts = [
            (_turn(texts, None if method.several else layer, turn, len(turns), positions), search_of(method, relative))
            for turn, method in enumerate(turns)
        ]
        self.search = self._parts[0][1]

    def at(self, values: Sequence[float]) -> Float[Tensor, "strengths tokens"]:
        """KL(unsteered ‖ steered) in nats at every steered token."""
        return torch.cat([own.divergences(search.pairs, values, BATCH) for own, search in self._parts], dim=1)


def _turn(texts: SteeredTexts, layer: int | None, turn: int, turns: int, positions: Positions) -> SteeredTexts:
    """The texts on which it is one method's turn."""
    if turns == 1 and isinstance(positions, str) and positions == texts.positions:
        return replace(texts, layer=layer)  # what the unsteered model says to them is computed once
    every = texts.texts
    own = replace(
        every,
        tokens=every.tokens[turn::turns],
        mask=every.mask[turn::turns],
        prompt_lengths=every.prompt_lengths[turn::turns],
    )
    return SteeredTexts.of(texts.model, own, positions, layer)


def levels_of(
    texts: SteeredTexts, setting: Setting, steerer: Steerer | Prompted, positions: Positions = "decoding"
) -> list[Level]:
    """One level for each budget of the setting: a strength that spends it, or else the one that comes nearest, as of a
    map that is too weak, or a closed loop, which acts at T = 0 too.

    The search begins where the cost of the budget before says, as costs grow as the square of a small strength; where
    it fails, and for closed loops, the smallest strength is sought as by `calibrate`.
    """
    if isinstance(steerer, Prompted):
        return _prefix_levels(texts, setting, steerer)
    spent = Costs(texts, setting.layer, steerer, positions)
    costs: dict[float, float] = {}

    def measure(values: Sequence[float]) -> list[float]:
        new = [value for value in values if value not in costs]
        if new:
            costs.update(zip(new, spent.at(new).mean(1).tolist(), strict=True))
        return [costs[value] for value in values]

    search = spent.search
    levels, guess = list[Level](), search.guess
    for budget, following in zip_longest(setting.budgets, setting.budgets[1:]):
        value = None
        if not isinstance(first_of(steerer), FeedbackController):
            value = near_crossing(lambda one: measure([one])[0], budget, guess, search.most)
        if value is None:
            found = first_crossing(measure, budget, search.guess, search.most)
            value = found.strength if found.reached else nearest(found.costs, budget)
        strength, reached = strength_of(search.sought, value), spends(costs[value], budget)
        levels.append(Level(budget, costs[value], reached, strength.T, strength.relative_T))  # type: ignore[arg-type]
        if reached and following is not None:
            guess = value * (following / costs[value]) ** 0.5
    return levels


def _prefix_levels(texts: SteeredTexts, setting: Setting, prompted: Prompted) -> list[Level]:
    """Per budget the prefix whose cost is nearest to it."""
    costs = {}
    for prefix in prompted.prefixes:
        prompts = [f"{prefix} {prompt}" for prompt in setting.validation_prompts]
        prefixed = SteeredTexts.of(
            texts.model, after_prompts(texts.model, prompts, texts.texts, chat_template=setting.chat)
        )
        costs[prefix] = float(divergence_between(texts, prefixed, BATCH).mean())
    levels = []
    for budget in setting.budgets:
        prefix = nearest(costs, budget)
        levels.append(Level(budget, costs[prefix], spends(costs[prefix], budget), prefix=prefix))
    return levels


def nearest(costs: dict[Tried, float], budget: float) -> Tried:
    """What costs nearest to the budget, in logarithms; the first of equals."""
    return min(costs, key=lambda one: abs(math.log(max(costs[one], 1e-12) / budget)))
