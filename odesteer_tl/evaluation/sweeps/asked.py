"""What was asked of a sweep, checked before anything is read: its data, methods and functions, and the plan."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from odesteer_tl._shapes import Position
from odesteer_tl.backends.checks import check_layer
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.data.tokens import is_weighted, reads_several
from odesteer_tl.evaluation.choose_layer import usual_layers
from odesteer_tl.evaluation.continuations import UNSTEERED, Judge, Setting
from odesteer_tl.evaluation.entries import Entry, entry_of
from odesteer_tl.evaluation.strength_search import check_budget
from odesteer_tl.evaluation.sweeps import guardrails as guards
from odesteer_tl.evaluation.sweeps.ablated import ENTRIES
from odesteer_tl.evaluation.sweeps.plan import Plan, protocol_of


@dataclass(frozen=True, eq=False)
class Asked:
    """A checked question: the `model`, the `plan`, texts by name, an entry per row, and the functions."""

    model: Any
    plan: Plan
    texts: Mapping[str, list[str]]
    methods: Mapping[str, Any]
    entries: Mapping[str, Entry]
    metrics: Mapping[str, guards.Metric]
    judge: Judge | None

    def protocol(self) -> tuple[dict[str, Any], list[str]]:
        """See `protocol_of`."""
        functions = {f"method {name}": one for name, one in self.methods.items()} | dict(self.metrics)
        sampling = {"samples": self.plan.samples, "max_new_tokens": self.plan.max_new_tokens,
                    "temperature": Setting.temperature, "top_p": Setting.top_p, "chat": self.plan.chat}  # fmt: skip
        return protocol_of(self.model, self.plan, self.texts, functions | {"judge": self.judge}, sampling)

    def settings(self) -> list[Setting]:
        """One per seed, at the first layer."""
        plan = self.plan
        return [
            Setting(
                self.model, plan.layers[0], self.texts["prompts"], self.texts["validation_prompts"],
                self.judge or _nothing, plan.samples, None, plan.max_new_tokens, seed=seed, chat=plan.chat,
                budgets=Setting.budgets if plan.ablation is None else (plan.ablation,),
            )
            for seed in plan.seeds
        ]  # fmt: skip


def asked(model: Any, data: Any, methods: Any, *, layers: Iterable[int] | None, positions: Sequence[Position],
          strengths: Any, judge: Judge | None, primary: str, guardrails: guards.Bounds,
          metrics: Mapping[str, guards.Metric], unrelated: Sequence[str], keep: int, seeds: Sequence[int],
          samples: int, max_new_tokens: int, ablation: bool, kl: float) -> Asked:  # fmt: skip
    """The question of `sweep`, checked. Raises ValueError as `sweep` does, but for its folder.
    `data.chat`, if there: whether prompts stand in the model's chat template."""
    missing = [name for name in ("desired", "undesired", "prompts") if not hasattr(data, name)]
    if missing:
        raise ValueError(f"sweep takes data with desired, undesired and prompts, as ot.load_demo(); {missing} lacks.")
    if not isinstance(methods, Mapping) or not methods or UNSTEERED in methods:
        raise ValueError(f'methods is a dict by name, such as {{"CAA": ot.CAA}}; got {methods!r}.')
    if isinstance(seeds, int) or not seeds:
        raise ValueError(f"seeds is a sequence, such as (0, 1); got {seeds!r}.")
    if isinstance(positions, str) or not positions:
        raise ValueError(f'positions is a sequence, such as ("last",); got {positions!r}.')
    if isinstance(unrelated, str):
        raise ValueError(f"unrelated is a sequence of prompts, ({unrelated!r},); got one text.")
    if len(data.prompts) < 2 or keep < 1 or not all(map(_one_by_name, positions)):
        raise ValueError(
            'sweep needs two prompts, keep=1 or more, and positions by name such as "last", one token a text.'
        )
    check_budget(kl, "above 0")
    if ablation and (taken := set(ENTRIES) & set(methods)):
        raise ValueError(f"The rows of the ablation are named {', '.join(ENTRIES)}: rename {', '.join(sorted(taken))}.")
    chat = getattr(data, "chat", False)
    if not isinstance(chat, bool):
        raise ValueError(f"data.chat is whether prompts stand in the model's chat template, a bool; got {chat!r}.")
    measures = _measures(judge, primary, metrics, bool(unrelated), guardrails)
    of_layers = tuple(usual_layers(layers_of(model)) if layers is None else sorted(set(layers)))
    if not of_layers:
        raise ValueError(f"layers are some of the model's blocks, 0 to {layers_of(model) - 1}; got none.")
    for layer in of_layers:
        check_layer(model, layer)
    walk = strengths if isinstance(strengths, Mapping) else dict.fromkeys(methods, strengths)
    plan = Plan(
        methods=tuple(methods),
        layers=of_layers,
        positions=tuple(dict.fromkeys(positions)),
        strengths={name: _rising(name, walk) for name in methods},
        own_units=isinstance(strengths, Mapping),
        measures=measures,
        primary=primary,
        guardrails=guards.checked_bounds(guardrails, measures),
        seeds=tuple(dict.fromkeys(seeds)),
        keep=keep,
        prompts=len(data.prompts),
        samples=samples,
        max_new_tokens=max_new_tokens,
        ablation=float(kl) if ablation else None,
        chat=chat,
    )
    entries = {name: entry_of(name, method) for name, method in methods.items()} | (ENTRIES if ablation else {})
    for name, entry in entries.items():
        if entry.on != "texts":
            raise ValueError(f"{name!r} is fitted on {entry.on}; sweep fits on texts at every place, as ot.CAA does.")
    others = getattr(data, "validation_prompts", data.prompts)
    texts = {"desired": data.desired, "undesired": data.undesired, "prompts": data.prompts,
             "validation_prompts": others, "unrelated": unrelated}  # fmt: skip
    return Asked(model, plan, {name: list(of) for name, of in texts.items()}, methods, entries, metrics, judge)


def _one_by_name(position: object) -> bool:
    """Whether it reads one activation a text, and its name says how, so that the folder of a sweep can hold it."""
    return isinstance(position, (str, int)) and not reads_several(position) and not is_weighted(position)


def _measures(
    judge: Judge | None, primary: str, metrics: Mapping[str, guards.Metric], unrelated: bool, bounds: Any
) -> tuple[str, ...]:
    """The names of all measures. Raises ValueError for a primary one that is not measured, and for a name twice."""
    if judge is None and primary == "share":
        raise ValueError("share needs a judge: give judge=, or metrics={name: function} and primary=name.")
    asked_for = isinstance(bounds, Mapping) and guards.SPEED in bounds
    more = {"unrelated_kl": unrelated, "share": judge is not None, guards.SPEED: asked_for}
    known = [*guards.MEASURES, *(name for name, there in more.items() if there)]
    if primary != "share" and primary not in metrics:
        raise ValueError(
            f"primary is 'share' or one of metrics, {', '.join(metrics) or 'none given'}; got {primary!r}."
        )
    if set(metrics) & {*known, *more}:
        raise ValueError(f"metrics have names of their own, other than {', '.join(known)}; got {', '.join(metrics)}.")
    return tuple([*known, *metrics])


def _rising(name: str, strengths: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    if name not in strengths:
        raise ValueError(f"strengths has no {name!r}: give numbers for every method, or one sequence for all.")
    values = strengths[name]
    if isinstance(values, (str, int, float)) or not len(values) or not all(0 < one < math.inf for one in values):
        raise ValueError(f"strengths of {name!r} are numbers above 0, such as (0.05, 0.1, 0.2); got {values!r}.")
    return tuple(sorted({float(value) for value in values}))


def _nothing(texts: Sequence[str]) -> torch.Tensor:
    """In the place of a judge where there is none: its share is not reported."""
    return torch.zeros(len(texts), device="cpu")
