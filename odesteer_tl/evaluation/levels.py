"""The strength, or the prefix, at which a row of a comparison spends each budget of KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

import torch

from odesteer_tl.backends.generate import generate
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.evaluation.continuations import Setting, Steerer, after_prompts
from odesteer_tl.evaluation.divergence import SteeredTexts, divergence_between
from odesteer_tl.evaluation.entries import Prompted
from odesteer_tl.evaluation.root_search import first_crossing, near_crossing, spends
from odesteer_tl.evaluation.strength_search import Search, search_of, strength_of
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import Method
from odesteer_tl.methods.calibrated import without_strength
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


def levels_of(
    texts: SteeredTexts, setting: Setting, steerer: Steerer | Prompted, positions: Positions = "decoding"
) -> list[Level]:
    """One level for each budget of the setting: a strength that spends it, or else the one that comes nearest, as of a
    map that is too weak, or a closed loop, which acts at T = 0 too.

    Methods that take turns have one strength, and take turns over the texts here too. The search begins where the cost
    of the budget before says, as costs grow as the square of a small strength; where it fails, and for closed loops,
    the smallest strength is sought as by `calibrate`.
    """
    if isinstance(steerer, Prompted):
        return _prefix_levels(texts, setting, steerer)
    methods = steerer if isinstance(steerer, tuple) else (steerer,)
    turns = methods[: len(texts.named)]  # there may be fewer texts than methods
    parts = [_turn(texts, setting, method, turn, len(turns), positions) for turn, method in enumerate(turns)]
    search = parts[0][1]
    costs: dict[float, float] = {}

    def measure(values: Sequence[float]) -> list[float]:
        new = [value for value in values if value not in costs]
        if new:
            spent = torch.cat([own.divergences(search.pairs, new, BATCH) for own, search in parts], dim=1)
            costs.update(zip(new, spent.mean(1).tolist(), strict=True))
        return [costs[value] for value in values]

    levels, guess = list[Level](), search.guess
    for budget, following in zip_longest(setting.budgets, setting.budgets[1:]):
        value = None
        if not isinstance(methods[0], FeedbackController):
            value = near_crossing(lambda one: measure([one])[0], budget, guess, search.most)
        if value is None:
            found = first_crossing(measure, budget, search.guess, search.most)
            value = found.strength if found.reached else _nearest(found.costs, budget)
        strength, reached = strength_of(search.sought, value), spends(costs[value], budget)
        levels.append(Level(budget, costs[value], reached, strength.T, strength.relative_T))  # type: ignore[arg-type]
        if reached and following is not None:
            guess = value * (following / costs[value]) ** 0.5
    return levels


def cost_at(
    texts: SteeredTexts, setting: Setting, steerer: Steerer, strength: Strength, positions: Positions = "decoding"
) -> float:
    """KL(unsteered ‖ steered) at a strength, the mean over the steered tokens, in nats; methods that take turns do so
    over the texts."""
    methods = steerer if isinstance(steerer, tuple) else (steerer,)
    turns, value = methods[: len(texts.named)], float(strength.value)
    spent = []
    for turn, method in enumerate(turns):
        own, _ = _turn(texts, setting, method, turn, len(turns), positions)
        pairs = partial(_at_values, without_strength(method), strength)
        spent.append(own.divergences(pairs, [value], BATCH)[0])
    return float(torch.cat(spent).mean())


def _at_values(method: Method, strength: Strength, values: Any) -> list[tuple[Any, Strength]]:
    return [(method, strength.mapped(lambda _: values))]


def _turn(
    texts: SteeredTexts, setting: Setting, method: Method, turn: int, turns: int, positions: Positions
) -> tuple[SteeredTexts, Search]:
    """The texts on which it is the method's turn, and the search for its strength."""
    layer, all_of = None if method.several else setting.layer, texts.texts
    own = replace(
        all_of,
        tokens=all_of.tokens[turn::turns],
        mask=all_of.mask[turn::turns],
        prompt_lengths=all_of.prompt_lengths[turn::turns],
    )
    return SteeredTexts.of(texts.model, own, positions, layer), search_of(method, None)


def _prefix_levels(texts: SteeredTexts, setting: Setting, prompted: Prompted) -> list[Level]:
    """Per budget the prefix whose cost is nearest to it."""
    costs = {}
    for prefix in prompted.prefixes:
        prompts = [f"{prefix} {prompt}" for prompt in setting.validation_prompts]
        prefixed = SteeredTexts.of(texts.model, after_prompts(setting, prompts, texts.texts))
        costs[prefix] = float(divergence_between(texts, prefixed, BATCH).mean())
    levels = []
    for budget in setting.budgets:
        prefix = _nearest(costs, budget)
        levels.append(Level(budget, costs[prefix], spends(costs[prefix], budget), prefix=prefix))
    return levels


def _nearest(costs: dict[Tried, float], budget: float) -> Tried:
    """What costs nearest to the budget, in logarithms; the first of equals."""
    return min(costs, key=lambda one: abs(math.log(max(costs[one], 1e-12) / budget)))
