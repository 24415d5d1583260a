"""One cell: a method at a place, a strength and a seed, or no steering; its KL, its continuations, and all measures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from odesteer_tl.evaluation.continuations import Setting
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.levels import BATCH, Level, unsteered_texts
from odesteer_tl.evaluation.runs import Base, Run, base_of, prompt_activations, run_at, unsteered
from odesteer_tl.evaluation.strength_search import Search, search_of, strength_of
from odesteer_tl.evaluation.sweeps import guardrails as guards
from odesteer_tl.evaluation.sweeps.fits import Fits, Place
from odesteer_tl.methods import PointwiseMethod

SHARE = 0.3
"""The strength at which a method has its `usual_T`: that moves by 0.3 of the activations' norm, or is the whole map."""


def in_unit_of(method: PointwiseMethod, search: Search, strength: float) -> float:
    """relative_T itself where T is a length; else T = strength / 0.3 · `usual_T`, and no more than the largest T."""
    return strength if search.sought == "relative_T" else min(strength / SHARE * method.usual_T, search.most)


class CellMeasures:
    """Measures cells, and keeps what several of them need: the unsteered continuations of each seed, and the texts
    that KL is measured on."""

    def __init__(self, fits: Fits) -> None:
        self.fits, self.asked = fits, fits.asked
        self.settings = {setting.seed: setting for setting in self.asked.settings()}
        self._bases: dict[tuple[int, int], Base] = {}
        self._texts: dict[str, SteeredTexts] = {}

    def cell(self, name: str, place: Place | None, strength: float, seed: int) -> dict[str, Any]:
        """The `measures` by name, None where one is not finite, the `scores` of the primary one by prompt, and what the
        strength is in the method's `unit`. `place` None: no steering. The seed sets the fit and the sampling."""
        several = ["validation_prompts", *(["unrelated"] if self.asked.texts["unrelated"] else [])]
        if place is None:
            base = self._base(self.settings[seed], self.asked.plan.layers[0])
            costs = dict.fromkeys(["kl", "kl_p95", "unrelated_kl"][: 1 + len(several)], 0.0)
            return {"unit": "T", "value": 0.0} | self._cell(unsteered(base), costs)
        method = self.fits.of(name, place, seed)
        search = search_of(method, None)
        value = strength if self.asked.plan.own_units else in_unit_of(method, search, strength)
        kl, *others = (self._texts_on(which).divergences(search.pairs, [value], BATCH)[0] for which in several)
        costs = {"kl": float(kl.mean()), "kl_p95": float(kl.quantile(0.95))}
        if others:
            costs["unrelated_kl"] = float(others[0].mean())
        at = strength_of(search.sought, value)
        level = Level(costs["kl"], costs["kl"], True, at.T, at.relative_T)  # type: ignore[arg-type] — one number
        run = run_at(self._base(self.settings[seed], place[0]), method, level)
        return {"unit": search.sought, "value": value} | self._cell(run, costs)

    def _base(self, setting: Setting, layer: int) -> Base:
        key, first = (setting.seed, layer), (setting.seed, self.asked.plan.layers[0])
        if first not in self._bases:
            self._bases[first] = base_of(setting)
        if key not in self._bases:
            here = replace(setting, layer=layer)
            self._bases[key] = Base(here, self._bases[first].outcome, prompt_activations(here))
        return self._bases[key]

    def _texts_on(self, which: str) -> SteeredTexts:
        if which not in self._texts:
            setting = self.settings[self.asked.plan.seeds[0]]
            self._texts[which] = unsteered_texts(replace(setting, validation_prompts=self.asked.texts[which]))
        return self._texts[which]

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
        }


def _by_prompt(name: str, metric: guards.Metric, texts: Sequence[str], samples: int) -> list[float]:
    """The metric of each prompt's own continuations. Raises ValueError where one is not finite."""
    own = [texts[i : i + samples] for i in range(0, len(texts), samples)]
    scores = [guards.number_of(name, metric, of) for of in own]
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"The primary metric {name!r} gives a number that is not finite for some prompt.")
    return scores
