"""The rows of a comparison: the methods of the paper's Table 2, closed loops, and three controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch

from odesteer_tl.control import ALQR, SPID
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.data import On, Source
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import Method, ODESteer, RandomDirection, RepE
from odesteer_tl.methods.calibrated import without_strength
from odesteer_tl.methods.registry import registered

PRAISE = (
    "I enjoyed this film.",
    "This is one of the best films I have seen this year, and I loved it.",
    "A wonderful, moving and superbly acted film. Everyone should see it. I loved every minute of it.",
)
"""Prefixes of the prompt-only control, for data whose desired side is praise of films."""


@dataclass(frozen=True)
class Prompted:
    """No steering, but one of `prefixes` before the prompt: the one whose KL is nearest to the budget. Raises
    ValueError where there is none, and for an empty one."""

    prefixes: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.prefixes, str) or not self.prefixes or not all(self.prefixes):
            raise ValueError(f"The prompt-only control needs prefixes, such as ('I loved it.',); got {self.prefixes}.")


@dataclass(frozen=True)
class Entry:
    """How a row fits its method: `fit(acts, seed)`, `on` which data, and `by_chance`: whether the seed changes the fit.

    `fit` returns a method, several methods that take turns over a prompt's continuations, or a `Prompted`. With
    on="model" it gets a `Source` instead of activations. `positions`: the tokens that the method steers. `prompted`: a
    `Prompted`, which has no T.
    """

    fit: Callable[[Any, int], Any]
    on: On = "texts"
    by_chance: bool = False
    positions: Positions = "decoding"
    prompted: bool = False


def entry_of(name: str, method: Any) -> Entry:
    """The entry for a value of `methods`: an `Entry`, a fitted method, or a function of activations that fits one.

    For the own `fit` of a method's class, the class's `view` names the data, and its signature whether it takes a
    `seed`. A class means its `fit`. Raises ValueError for anything else.
    """
    if isinstance(method, type) and issubclass(method, Method):
        method = getattr(method, "fit", method)
    if isinstance(method, (Entry, Prompted)):
        return method if isinstance(method, Entry) else Entry(lambda acts, seed: method, prompted=True)
    if isinstance(method, Method):
        method = without_strength(method)  # a comparison seeks the strengths
        return Entry(lambda acts, seed: method, "elsewhere")
    if callable(method) and not isinstance(method, type):
        owner = getattr(method, "__self__", None)
        if isinstance(owner, type) and issubclass(owner, Method) and method.__name__ == "fit":
            return _own(name, owner, method)
        return Entry(lambda acts, seed: method(acts))
    raise ValueError(
        f"{name!r} must be a fitted method, such as ot.CAA.fit(acts), or one to fit, such as ot.CAA; got {method!r}."
    )


def _own(name: str, kind: type[Method], fit: Callable[..., Any]) -> Entry:
    """The entry of a class by its own `fit`; a class without a `view` is fitted on texts."""
    needs: dict[str, On] = {"pairs": "pairs", "pairs with queries": "queries", "texts and the model": "model"}
    on = needs.get(kind.view.needs, "texts") if hasattr(kind, "view") else "texts"
    seeded = "seed" in signature(fit).parameters
    if on == "model":
        return Entry(lambda source, seed: _closed(fit, source, **({"seed": seed} if seeded else {})), on, seeded)
    if seeded:
        return Entry(lambda acts, seed: fit(acts, seed=seed), on, by_chance=True)
    return Entry(lambda acts, seed: fit(acts), on)


LITERATURE: dict[str, Entry] = {
    entry.method.view.name: entry_of(entry.method.view.name, entry.method.fit) for entry in registered() if entry.row
} | {
    RepE.view.name: Entry(lambda acts, seed: RepE.fit(acts), "pairs")
}  # it does not need pairs, but is better with them
"""The rows of Table 2 in its order, without the unsteered one."""

FEW: dict[str, Any] = {"n_jacobians": 5, "context": 16}
"""For A-LQR's rows: few Jacobians of short texts, to save time."""


def _closed(fit: Callable[..., Any], source: Source, **options: Any) -> Any:
    return fit(source.model, source.desired, source.undesired, progress=False, **options)


LOOPS: dict[str, Entry] = {
    "A-LQR": Entry(lambda source, seed: _closed(ALQR.fit, source, **FEW), "model"),
    "A-LQR+": Entry(lambda source, seed: _closed(ALQR.fit, source, **FEW), "model", positions="all"),
    "S-PID": Entry(lambda source, seed: _closed(SPID.fit, source), "model"),
}
"""The closed loops, at all layers; A-LQR+ steers every token."""


def controls(prefixes: Sequence[str] = ()) -> dict[str, Entry]:
    """The controls: a random direction, ODESteer fitted to shuffled labels, and a prefix before the prompt.

    Without `prefixes` the third is left out.
    """
    rows = {
        "random direction": Entry(lambda acts, seed: opposites(acts, seed, pairs=2), by_chance=True),
        "shuffled labels": Entry(lambda acts, seed: ODESteer.fit(shuffled(acts, seed)), by_chance=True),
    }
    return rows | ({"prompt only": entry_of("prompt only", Prompted(tuple(prefixes)))} if prefixes else {})


def opposites(acts: ContrastiveActivations, seed: int, pairs: int) -> tuple[RandomDirection, ...]:
    """Random directions, each followed by its opposite, that take turns over a prompt's continuations.

    A single direction changes the judged share of a small model by up to 20 points up or down. The two of a pair cancel
    this, and what remains is the effect of any displacement of that length.
    """
    firsts = [RandomDirection.fit(acts, seed=2 * pairs * seed + turn) for turn in range(pairs)]
    return tuple(method for one in firsts for method in (one, replace(one, direction=-one.direction)))


def shuffled(acts: ContrastiveActivations, seed: int) -> ContrastiveActivations:
    """The same activations with sides drawn at random, of the same sizes, and without pairs and groups."""
    rows = torch.cat([acts.desired, acts.undesired])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed), device="cpu").to(rows.device)
    desired, undesired = rows[order].split([len(acts.desired), len(acts.undesired)])
    return replace(
        acts, desired=desired, undesired=undesired, paired=False, groups=None, rewards=None, queries=None, tokens=None
    )
