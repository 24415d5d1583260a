"""One cell: a method at a place, a strength and a seed, or no steering; its KL, its continuations, and all measures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from odesteer_tl.evaluation.choose_layer import Place
from odesteer_tl.evaluation.data import FitData
from odesteer_tl.evaluation.engine import Engine
from odesteer_tl.evaluation.levels import Level
from odesteer_tl.evaluation.runs import Run
from odesteer_tl.evaluation.strength_search import Search, search_of, strength_of
from odesteer_tl.evaluation.sweeps import guardrails as guards
from odesteer_tl.evaluation.sweeps.asked import Asked
from odesteer_tl.evaluation.sweeps.places import method_at
from odesteer_tl.methods import PointwiseMethod

SHARE = 0.3
"""The strength at which a method has its `usual_T`: that moves by 0.3 of the activations' norm, or is the whole map."""


HOLDS = ("unit", "value", "measures", "scores", "texts")
"""What a cell holds beside its key."""


@dataclass(frozen=True)
class Budget:
    """In the place of a strength: what spends `kl` nats."""

    kl: float


At = float | Budget
"""Where on a row's walk a cell lies."""


def in_unit_of(method: PointwiseMethod, search: Search, strength: float) -> float:
    """relative_T itself where T is a length; else T = strength / 0.3 · `usual_T`, and no more than the largest T."""
    return strength if search.sought == "relative_T" else min(strength / SHARE * method.usual_T, search.most)


class CellMeasures:
    """Measures cells by the engine."""

    def __init__(self, asked: Asked, engine: Engine, places: Mapping[Place, FitData]) -> None:
        self.asked, self.engine, self.places = asked, engine, places

    def cells(self, name: str, place: Place | None, walk: Sequence[At], seed: int) -> list[dict[str, Any]]:
        """A cell for each strength of `walk`, all continued in one batch: the `measures` by name, None where one is not
        finite, the `scores` of the primary one by prompt, the continued `texts`, and what the strength is in the
        method's `unit`. `place` None: no steering. The seed sets the fit and the sampling; what shares the batch
        changes no figure."""
        if place is None:
            costs = dict.fromkeys(["kl", "kl_p95", *self._unrelated], 0.0)
            return [{"unit": "T", "value": 0.0} | self._cell(self.engine.unsteered(seed), costs)]
        key = name, self.places[place], seed
        search = search_of(method_at(self.engine, *key), None)
        values = [self._value(key, search, strength) for strength in walk]
        costs = [self._costs(key, value) for value in values]
        levels = [
            Level(cost["kl"], cost["kl"], True, at.T, at.relative_T)  # type: ignore[arg-type] — one number
            for cost, at in zip(costs, (strength_of(search.sought, value) for value in values), strict=True)
        ]
        return [
            {"unit": search.sought, "value": value} | self._cell(run, cost)
            for value, run, cost in zip(values, self.engine.runs(*key, levels), costs, strict=True)
        ]

    def _value(self, key: tuple[str, FitData, int], search: Search, strength: At) -> float:
        """The strength in the unit of the method."""
        if isinstance(strength, Budget):
            (level,) = self.engine.levels(*key)
            return level.strength.value  # type: ignore[union-attr] — a method has a strength
        return strength if self.asked.plan.own_units else in_unit_of(method_at(self.engine, *key), search, strength)

    def _costs(self, key: tuple[str, FitData, int], value: float) -> dict[str, float]:
        """The KL there, by measure."""
        kl = self.engine.costs(*key, value)
        costs = {"kl": float(kl.mean()), "kl_p95": float(kl.quantile(0.95))}
        for measure, prompts in self._unrelated.items():
            costs[measure] = float(self.engine.costs(*key, value, prompts).mean())
        return costs

    @property
    def _unrelated(self) -> dict[str, list[str]]:
        return {"unrelated_kl": prompts} if (prompts := self.asked.texts["unrelated"]) else {}

    def _cell(self, run: Run, costs: Mapping[str, float]) -> dict[str, Any]:
        texts, plan, metrics = run.continuations, self.asked.plan, self.asked.metrics
        found = {
            **costs, "perplexity_ratio": run.perplexity_ratio, "distinct2": run.distinct2, "share": run.share,
            "repetition": guards.repetition(texts), "length": guards.length(texts),
            "informativeness": guards.informativeness(texts), guards.SPEED: run.tokens_per_second,
        }  # fmt: skip
        found |= {name: guards.number_of(name, metric, texts) for name, metric in metrics.items()}
        scores = run.desired.mean(1).tolist()
        if plan.primary != "share":
            scores = _by_prompt(plan.primary, metrics[plan.primary], texts, plan.samples)
        return {
            "measures": {name: found[name] if math.isfinite(found[name]) else None for name in plan.measures},
            "scores": scores,
            "texts": texts,
        }


def _by_prompt(name: str, metric: guards.Metric, texts: Sequence[str], samples: int) -> list[float]:
    """The metric of each prompt's own continuations. Raises ValueError where one is not finite."""
    own = [texts[i : i + samples] for i in range(0, len(texts), samples)]
    scores = [guards.number_of(name, metric, of) for of in own]
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"The primary metric {name!r} gives a number that is not finite for some prompt.")
    return scores
