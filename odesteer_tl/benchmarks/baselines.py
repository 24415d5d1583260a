"""The rows that every benchmark has besides the unsteered model: controls, two vectors, and ODESteer's four corners."""

from collections.abc import Sequence
from typing import Any

from odesteer_tl.evaluation.entries import Entry, controls, entry_of
from odesteer_tl.flows.features import Linear
from odesteer_tl.methods import CAA, ITI, ODESteer, StepODESteer

STEPS = {"one step": StepODESteer, "ten steps": ODESteer}


def baselines(prefixes: Sequence[str] = ()) -> dict[str, Entry]:
    """By name: prompt only (where there are `prefixes`), random direction, shuffled labels, CAA, ITI, and ODESteer with
    a linear and a nonlinear h, each in one step and in ten, at the paper's values. Add rows of your own with `|`."""
    rows = controls(prefixes)
    rows = {name: rows[name] for name in ("prompt only", "random direction", "shuffled labels") if name in rows}
    rows |= {"CAA": entry_of("CAA", CAA), "ITI": entry_of("ITI", ITI)}
    rows |= {f"ODESteer linear, {name}": _fitted(method, features=Linear()) for name, method in STEPS.items()}
    return rows | {f"ODESteer, {name}": entry_of(name, method) for name, method in STEPS.items()}


def stopping() -> dict[str, Entry]:
    """ODESteer with a linear and a nonlinear h, each walk ended where h is that of half of the desired texts."""
    return {
        "ODESteer linear, until": _fitted(ODESteer, features=Linear(), until="desired"),
        "ODESteer, until": _fitted(ODESteer, until="desired"),
    }


def _fitted(method: Any, **given: Any) -> Entry:
    return Entry(lambda acts, seed: method.fit(acts, **given))
