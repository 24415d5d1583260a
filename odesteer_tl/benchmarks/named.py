"""The benchmarks and rows by the names that the command line takes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from odesteer_tl.benchmarks import preferences, toxicity
from odesteer_tl.benchmarks.baselines import baselines
from odesteer_tl.benchmarks.behaviours import CAA_READERS, ABBehaviour
from odesteer_tl.benchmarks.benchmark import Benchmark
from odesteer_tl.benchmarks.classifier_judges import ClassifierJudge, RewardJudge
from odesteer_tl.benchmarks.endpoint_judge import EndpointJudge
from odesteer_tl.benchmarks.judges import Judge
from odesteer_tl.benchmarks.preferences import Preferences
from odesteer_tl.benchmarks.toxicity import RealToxicityPrompts
from odesteer_tl.benchmarks.truthfulqa import TruthfulQAMC
from odesteer_tl.data.plain_trees import parsed
from odesteer_tl.evaluation.entries import Entry, entry_of
from odesteer_tl.methods.registry import method_named, registered

NAMED: dict[str, Callable[..., Benchmark]] = {
    "truthfulqa-mc": TruthfulQAMC.read, "ab": ABBehaviour.read, **CAA_READERS, "preferences": Preferences.read,
    "toxicity": RealToxicityPrompts.read,
}  # fmt: skip
"""By name: what reads its data, `read(source, limit=, seed=)`."""

SAMPLING = {"preferences": preferences.SAMPLING, "toxicity": toxicity.SAMPLING}
"""How those that sample texts do it."""

SHORT = {
    "prompt": "prompt only", "random": "random direction", "shuffled": "shuffled labels", "caa": "CAA", "iti": "ITI",
    "linear1": "ODESteer linear, one step", "linear10": "ODESteer linear, ten steps",
    "nonlinear1": "ODESteer, one step", "nonlinear10": "ODESteer, ten steps",
}  # fmt: skip
"""The baselines' names without spaces and commas."""


def judge_named(given: str) -> Judge:
    """The judge of reward:NAME, reward-chat:NAME, classifier:LABEL:NAME or endpoint:FILE, a JSON file with the fields
    of `EndpointJudge`. Raises ValueError for another form, and as the judges do."""
    kind, _, rest = given.partition(":")
    if kind in ("reward", "reward-chat") and rest:
        return RewardJudge.load(rest, chat=kind == "reward-chat")
    label, _, name = rest.partition(":")
    if kind == "classifier" and label and name:
        return ClassifierJudge.load(name, label)
    if kind == "endpoint" and rest:
        try:
            own = parsed(Path(rest).read_text(encoding="utf-8"))
            return EndpointJudge(**own)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{rest} does not describe an endpoint: {error}") from error
    raise ValueError(f"{given!r} is none of reward:NAME, reward-chat:NAME, classifier:LABEL:NAME and endpoint:FILE.")


def read_named(name: str, source: str, limit: int | None, judge: str | None, how: dict[str, int]) -> Benchmark:
    """The benchmark of a name. `how`: fields of `Sampling`. Raises ValueError for a judge, or a way to sample, of one
    that samples no texts."""
    if name in SAMPLING:
        own = None if judge is None else judge_named(judge)
        return NAMED[name](source, limit=limit, judge=own, sampling=replace(SAMPLING[name], **how))
    if judge is not None or how:
        raise ValueError(f"{name} scores given answers: leave out --judge, --samples and --sample-tokens.")
    return NAMED[name](source, limit=limit)


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
