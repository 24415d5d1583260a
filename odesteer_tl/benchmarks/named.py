"""The benchmarks and rows by the names that the command line takes."""

from collections.abc import Callable, Sequence
from typing import Any

from odesteer_tl.benchmarks.baselines import baselines
from odesteer_tl.benchmarks.behaviours import CAA_READERS, ABBehaviour
from odesteer_tl.benchmarks.benchmark import Benchmark
from odesteer_tl.benchmarks.preferences import Preferences
from odesteer_tl.benchmarks.toxicity import RealToxicityPrompts
from odesteer_tl.benchmarks.truthfulqa import TruthfulQAMC
from odesteer_tl.evaluation.entries import Entry, entry_of
from odesteer_tl.methods.registry import method_named, registered

NAMED: dict[str, Callable[..., Benchmark]] = {
    "truthfulqa-mc": TruthfulQAMC.read, "ab": ABBehaviour.read, **CAA_READERS, "preferences": Preferences.read,
    "toxicity": RealToxicityPrompts.read,
}  # fmt: skip
"""By name: what reads its data, `read(source, limit=, seed=)`."""

SHORT = {
    "prompt": "prompt only", "random": "random direction", "shuffled": "shuffled labels", "caa": "CAA", "iti": "ITI",
    "linear1": "ODESteer linear, one step", "linear10": "ODESteer linear, ten steps",
    "nonlinear1": "ODESteer, one step", "nonlinear10": "ODESteer, ten steps",
}  # fmt: skip
"""The baselines' names without spaces and commas."""


def row_names() -> list[str]:
    """All names of rows: the baselines, then the other methods that are fitted to activations."""
    own = [entry.name for entry in registered() if entry.fits_activations]
    return [*SHORT, *(name for name in own if name not in (*SHORT, "odesteer", "stepodesteer"))]


def rows_named(names: Sequence[str] | None, prefixes: Sequence[str]) -> dict[str, Entry]:
    """The rows of these names, None: the baselines. A prompt-only row needs `prefixes`, and is left out without."""
    known = baselines(prefixes)
    if names is None:
        return known
    rows: dict[str, Any] = {}
    for name in names:
        if name not in SHORT:
            method = method_named(name)
            rows[method.view.name] = entry_of(name, method)
        elif SHORT[name] in known:
            rows[SHORT[name]] = known[SHORT[name]]
    return rows
