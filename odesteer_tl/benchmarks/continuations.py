"""The model's own continuations of a fold's prompts, on which KL(unsteered ‖ steered) is measured and spent."""

from typing import Any

import torch

from odesteer_tl.backends.generate import generate
from odesteer_tl.benchmarks.applied import Applied
from odesteer_tl.evaluation.continuations import Setting, Steerer, after_prompts
from odesteer_tl.evaluation.divergence import SteeredTexts, divergence_between
from odesteer_tl.evaluation.entries import Prompted
from odesteer_tl.evaluation.levels import BATCH, Costs, Level, levels_of, nearest
from odesteer_tl.evaluation.root_search import spends
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.strength import Strength


class Continuations:
    """Greedy and unsteered, of `prompts`; `layer`: that of the methods."""

    def __init__(self, model: Any, prompts: list[str], layer: int, max_new_tokens: int, bos: bool | None) -> None:
        self.model, self.prompts, self.layer, self.bos = model, prompts, layer, bos
        self.max_new_tokens = max_new_tokens
        written = generate(
            model, prompts, max_new_tokens=max_new_tokens, do_sample=False, batch_size=BATCH, prepend_bos=bos
        )
        self.texts = SteeredTexts.of(model, written)

    def levels(self, steerer: Steerer | Prompted, budgets: tuple[float, ...], positions: Positions) -> list[Level]:
        """One per budget of KL, in nats per token: the strength that spends it, found as by `ot.calibrate`, or the one
        that comes nearest; of prefixes the one that costs nearest to it, in logarithms."""
        if isinstance(steerer, Prompted):
            costs = {prefix: self.cost(Applied(prefix=prefix)) for prefix in steerer.prefixes}
            return [self._prefix(costs, budget) for budget in budgets]
        return levels_of(self.texts, self._setting(budgets), steerer, positions)

    def cost(self, applied: Applied) -> float:
        """The mean KL over the tokens from the prompt's last one on, in nats."""
        if applied.prefix:
            prompts = [applied.prompt(text) for text in self.prompts]
            prefixed = after_prompts(self.model, prompts, self.texts.texts, prepend_bos=self.bos)
            return float(divergence_between(self.texts, SteeredTexts.of(self.model, prefixed), BATCH).mean())
        if not applied.methods or applied.strength is None:
            return 0.0
        relative = applied.strength.relative_T is not None
        spent = Costs(self.texts, self.layer, applied.methods, applied.positions, relative)
        return float(spent.at([float(applied.strength.value)]).mean())

    def at_T(self, methods: Steerer, T: float, positions: Positions) -> Level:
        """A given T, and what it costs."""
        methods = methods if isinstance(methods, tuple) else (methods,)
        cost = self.cost(Applied(methods, Strength(T), positions=positions))
        return Level(cost, cost, True, T=T)

    def _prefix(self, costs: dict[str, float], budget: float) -> Level:
        prefix = nearest(costs, budget)
        return Level(budget, costs[prefix], spends(costs[prefix], budget), prefix=prefix)

    def _setting(self, budgets: tuple[float, ...]) -> Setting:
        return Setting(
            self.model, self.layer, self.prompts, self.prompts, _unjudged, max_new_tokens=self.max_new_tokens,
            budgets=budgets,
        )  # fmt: skip


def _unjudged(texts: Any) -> Any:
    """In the place of a judge: the texts are not judged."""
    return torch.zeros(len(texts), device="cpu")
