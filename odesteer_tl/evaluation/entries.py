"""The rows of a comparison: the methods of the paper's Table 2, closed loops, and three controls that know less."""

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

TRIALS = 3
"""How many strengths every row tries, or prefixes."""

PRAISE = (
    "I enjoyed this film.",
    "This is one of the best films I have seen this year, and I loved it.",
    "A wonderful, moving and superbly acted film. Everyone should see it. I loved every minute of it.",
)
"""Prefixes of the prompt-only control, the weakest first, for data whose desired side is praise of films."""


@dataclass(frozen=True)
class Prompted:
    """No steering: one of `prefixes`, the weakest first, stands before the prompt. Raises ValueError for others than
    `TRIALS` of them."""

    prefixes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.prefixes) != TRIALS:
            raise ValueError(
                f"{TRIALS} prefixes stand before the prompt in turn, the weakest first, as every row has {TRIALS} "
                f"trials; got {len(self.prefixes)}."
            )


@dataclass(frozen=True)
class Entry:
    """How a row comes to its method: `fit(acts, seed)`, on what, and whether `seed` changes it (else one fit serves).

    What `fit` returns is a method, several that take turns over a prompt's continuations, or `Prompted`. On "model" it
    gets a `Source` instead of activations. `positions`: the tokens that the method steers.
    """

    fit: Callable[[Any, int], Any]
    on: On = "texts"
    by_chance: bool = False
    positions: Positions = "decoding"


def entry_of(name: str, method: Any) -> Entry:
    """The row for what a user names: an `Entry`, a fitted method, or a function of the activations that fits one.

    The own `fit` of a method's class says on what it is fitted, by the class's `view`, and whether by a `seed`; the
    class stands for its `fit`. Raises ValueError for anything else.
    """
    if isinstance(method, type) and issubclass(method, Method):
        method = getattr(method, "fit", method)
    if isinstance(method, (Entry, Prompted)):
        return method if isinstance(method, Entry) else Entry(lambda acts, seed: method)
    if isinstance(method, Method):
        method = without_strength(method)  # a comparison seeks the strengths
        return Entry(lambda acts, seed: method, "elsewhere")
    if callable(method) and not isinstance(method, type):
        owner = getattr(method, "__self__", None)
        if isinstance(owner, type) and issubclass(owner, Method) and method.__name__ == "fit":
            return _own(name, owner, method)
        return Entry(lambda acts, seed: method(acts))
    raise ValueError(
        f"{name!r} is a fitted method, such as ot.CAA.fit(acts), or what fits one, such as ot.CAA; got {method!r}."
    )


def _own(name: str, kind: type[Method], fit: Callable[..., Any]) -> Entry:
    """The row of a class by its own `fit`; a class without a `view` is fitted on texts."""
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
} | {RepE.view.name: Entry(lambda acts, seed: RepE.fit(acts), "pairs")}  # which it would rather have; it needs none
"""The rows of Table 2 in its order, the unsteered one apart."""

FEW: dict[str, Any] = {"n_jacobians": 5, "context": 16}
"""Of A-LQR's rows: few Jacobians, of short beginnings, so that a comparison stays short."""


def _closed(fit: Callable[..., Any], source: Source, **options: Any) -> Any:
    return fit(source.model, source.desired, source.undesired, progress=False, **options)


LOOPS: dict[str, Entry] = {
    "A-LQR": Entry(lambda source, seed: _closed(ALQR.fit, source, **FEW), "model"),
    "A-LQR+": Entry(lambda source, seed: _closed(ALQR.fit, source, **FEW), "model", positions="all"),
    "S-PID": Entry(lambda source, seed: _closed(SPID.fit, source), "model"),
}
"""The closed loops, at all layers; A-LQR+ steers every token."""


def controls(prefixes: Sequence[str] = ()) -> dict[str, Entry]:
    """What a method has to beat: any push, the same fit to labels that mean nothing, and words before the prompt.

    Without `prefixes` there is nothing to say before the prompt, and the third is left out. Raises ValueError for
    another number of them than `TRIALS`.
    """
    rows = {
        "random direction": Entry(lambda acts, seed: opposites(acts, seed, pairs=2), by_chance=True),
        "shuffled labels": Entry(lambda acts, seed: ODESteer.fit(shuffled(acts, seed)), by_chance=True),
    }
    return rows | ({"prompt only": entry_of("prompt only", Prompted(tuple(prefixes)))} if prefixes else {})


def opposites(acts: ContrastiveActivations, seed: int, pairs: int) -> tuple[RandomDirection, ...]:
    """Random directions, each followed by its opposite, to take turns over a prompt's continuations.

    One direction alone moves the judge of a small model by up to 20 points either way; a pair cancels that and keeps
    what any push of that length does.
    """
    firsts = [RandomDirection.fit(acts, seed=2 * pairs * seed + turn) for turn in range(pairs)]
    return tuple(each for one in firsts for each in (one, replace(one, direction=-one.direction)))


def shuffled(acts: ContrastiveActivations, seed: int) -> ContrastiveActivations:
    """The same activations with their sides drawn anew, as many on either side; neither pairs nor groups are left."""
    rows = torch.cat([acts.desired, acts.undesired])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)
    desired, undesired = rows[order].split([len(acts.desired), len(acts.undesired)])
    return replace(
        acts, desired=desired, undesired=undesired, paired=False, groups=None, rewards=None, queries=None, tokens=None
    )
