"""The strength, or the prefix, at which a row of a comparison spends each budget of KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from odesteer_tl.backends.generate import generate
from odesteer_tl.evaluation.continuations import Setting, Steerer, after_prompts, first_of
from odesteer_tl.evaluation.crossing import first_crossing
from odesteer_tl.evaluation.divergence import SteeredTexts, divergence_between
from odesteer_tl.evaluation.entries import Prompted
from odesteer_tl.evaluation.strength_search import search_of, strength_of
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.strength import Strength

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
    """One level for each budget of the setting: the smallest strength that spends it, or else the one that comes
    nearest, as of a map that is too weak, or a closed loop, which acts at T = 0 too.

    Methods that take turns have one strength, at which their mean cost is the budget.
    """
    if isinstance(steerer, Prompted):
        return _prefix_levels(texts, setting, steerer)
    layer = None if first_of(steerer).several else setting.layer
    own = SteeredTexts.of(texts.model, texts.texts, positions, layer)
    searches = [search_of(method, None) for method in (steerer if isinstance(steerer, tuple) else (steerer,))]
    costs: dict[float, float] = {}

    def measure(values: Sequence[float]) -> list[float]:
        new = [value for value in values if value not in costs]
        if new:
            spent = [own.divergences(search.pairs, new, BATCH).mean(1) for search in searches]
            costs.update(zip(new, torch.stack(spent).mean(0).tolist(), strict=True))
        return [costs[value] for value in values]

    levels = []
    for budget in setting.budgets:
        found = first_crossing(measure, budget, searches[0].guess, searches[0].most)
        value = found.strength if found.reached else _nearest(found.costs, budget)
        strength = strength_of(searches[0].sought, value)
        levels.append(Level(budget, found.costs[value], found.reached, strength.T, strength.relative_T))  # type: ignore[arg-type]
    return levels


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
        reached = abs(costs[prefix] / budget - 1) <= 0.05
        levels.append(Level(budget, costs[prefix], reached, prefix=prefix))
    return levels


def _nearest(costs: dict, budget: float):  # type: ignore[no-untyped-def, type-arg]
    """What costs nearest to the budget, in logarithms; the first of equals."""
    return min(costs, key=lambda one: abs(math.log(max(costs[one], 1e-12) / budget)))
