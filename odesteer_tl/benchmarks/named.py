"""The benchmarks and rows by the names that the command line takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from odesteer_tl.benchmarks import behaviours, preferences, toxicity, truthfulqa_answers
from odesteer_tl.benchmarks.baselines import baselines, stopping
from odesteer_tl.benchmarks.behaviours import CAA_READERS, ABBehaviour
from odesteer_tl.benchmarks.benchmark import Benchmark
from odesteer_tl.benchmarks.classifier_judges import ClassifierJudge, RewardJudge
from odesteer_tl.benchmarks.endpoint_judge import EndpointJudge
from odesteer_tl.benchmarks.judges import Judge, KeywordJudge
from odesteer_tl.benchmarks.language_model_judge import LanguageModelJudge
from odesteer_tl.benchmarks.preferences import Preferences
from odesteer_tl.benchmarks.toxicity import RealToxicityPrompts
from odesteer_tl.benchmarks.truthfulqa import TruthfulQAMC
from odesteer_tl.benchmarks.truthfulqa_answers import TruthfulQA
from odesteer_tl.data.plain_trees import parsed
from odesteer_tl.evaluation.entries import Entry, entry_of
from odesteer_tl.methods.registry import method_named, registered

NAMED: dict[str, Callable[..., Benchmark]] = {
    "truthfulqa-mc": TruthfulQAMC.read, "truthfulqa": TruthfulQA.read, "ab": ABBehaviour.read, **CAA_READERS,
    "preferences": Preferences.read, "toxicity": RealToxicityPrompts.read,
}  # fmt: skip
"""By name: what reads its data, `read(source, limit=, seed=)`."""

SAMPLING = {
    "truthfulqa": truthfulqa_answers.SAMPLING, "preferences": preferences.SAMPLING, "toxicity": toxicity.SAMPLING,
    **dict.fromkeys(["ab", *CAA_READERS], behaviours.SAMPLING),
}  # fmt: skip
"""How those that sample texts do it."""

SHORT = {
    "prompt": "prompt only", "random": "random direction", "shuffled": "shuffled labels", "caa": "CAA", "iti": "ITI",
    "linear1": "ODESteer linear, one step", "linear10": "ODESteer linear, ten steps",
    "nonlinear1": "ODESteer, one step", "nonlinear10": "ODESteer, ten steps",
    "linear-until": "ODESteer linear, until", "nonlinear-until": "ODESteer, until",
}  # fmt: skip
"""The names of the baselines, and of the rows that stop at a level of h, without spaces and commas."""


PROBABILITIES = ("truthfulqa", "toxicity")
"""Those whose judges give probabilities, as a reward model does not."""


def judge_named(given: str, **where: Any) -> Judge:
    """The judge of reward:NAME, reward-chat:NAME, classifier:CLASS:NAME, lm:WORD:NAME, whose template is the text, a
    line break and WORD with a colon, or endpoint:FILE, a JSON file with the fields of `EndpointJudge`. `where`: device
    and dtype of a model. Raises ValueError for another form, and as the judges do."""
    kind, _, rest = given.partition(":")
    if kind in ("reward", "reward-chat") and rest:
        _check_path(rest)
        return RewardJudge.load(rest, chat=kind == "reward-chat", **where)
    label, _, name = rest.partition(":")
    if kind in ("classifier", "lm") and label and name:
        _check_path(name)
    if kind == "classifier" and label and name:
        return ClassifierJudge.load(name, label, **where)
    if kind == "lm" and label and name:
        return LanguageModelJudge.load(name, f"{{text}}\n{label}:", **where)
    if kind == "endpoint" and rest:
        try:
            own = parsed(Path(rest).read_text(encoding="utf-8"))
            known = [one.name for one in fields(EndpointJudge) if one.repr]  # without what it counts and keeps
            if not isinstance(own, dict) or not {*own} <= {*known}:
                raise ValueError(f"it is an object with some of {', '.join(known)}.")
            return EndpointJudge(**own)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{rest} does not describe an endpoint: {error}") from error
    raise ValueError(
        f"{given!r} is none of reward:NAME, reward-chat:NAME, classifier:CLASS:NAME, lm:WORD:NAME and endpoint:FILE."
    )


def _check_path(name: str) -> None:
    """Raise ValueError for a path that does not exist, which transformers would take for a name."""
    if name.startswith((".", "~", "/")) and not Path(name).is_dir():
        raise ValueError(f"{name} is no folder: give one that holds the judge, or a Hugging Face name.")


def read_named(
    name: str, source: str, limit: int | None, judge: str | None, how: dict[str, int], info: str | None = None,
    where: Mapping[str, Any] = MappingProxyType({}),
) -> Benchmark:  # fmt: skip
    """The benchmark of a name. `how`: fields of `Sampling`; `info`: a second judge, of how informative an answer is;
    `where`: device and dtype of judges. Raises ValueError for what the benchmark has no use for."""
    if info is not None and name != "truthfulqa":
        raise ValueError(f"--info-judge is for truthfulqa: leave it out with {name}.")
    if info is not None and judge is None:
        raise ValueError("--info-judge needs --judge, the judge of truth, beside it.")
    given = [one for one in (judge, info) if one is not None]
    if name in PROBABILITIES and any(one.startswith("reward") for one in given):
        raise ValueError(f"A judge of {name} gives probabilities, and a reward model does not: take another judge.")
    if name not in SAMPLING:
        if judge is not None or how:
            raise ValueError(f"{name} scores given answers: leave out --judge, --samples and --sample-tokens.")
        return NAMED[name](source, limit=limit)
    if given:  # other data is refused before judges are loaded, which can take minutes
        NAMED[name](source, limit=limit, **{"truth" if name == "truthfulqa" else "judge": KeywordJudge(("a",))})
    judges: dict[str, Judge | None] = {"judge": None if judge is None else judge_named(judge, **where)}
    if name == "truthfulqa":
        judges = {"truth": judges["judge"], "info": None if info is None else judge_named(info, **where)}
    read = NAMED[name](source, limit=limit, sampling=replace(SAMPLING[name], **how), **judges)
    if how and not read.samples:
        raise ValueError(f"{name} samples texts for a judge: give --judge, or leave out --samples and --sample-tokens.")
    return read


def row_names() -> list[str]:
    """All names of rows: the baselines, then the other methods that are fitted to activations."""
    own = [entry.name for entry in registered() if entry.fits_activations]
    return [*SHORT, *(name for name in own if name not in (*SHORT, "odesteer", "stepodesteer"))]


def rows_named(names: Sequence[str] | None, prefixes: Sequence[str]) -> dict[str, Entry]:
    """The rows of these names, None: the baselines. Raises ValueError for a prompt-only row without `prefixes`."""
    known = baselines(prefixes)
    if names is None:
        return known
    known |= stopping()
    rows: dict[str, Any] = {}
    for name in names:
        if name not in SHORT:
            method = method_named(name)
            rows[method.view.name] = entry_of(name, method)
        elif SHORT[name] not in known:
            raise ValueError(f"This benchmark has no prompts of its own for the row {name}: leave it out of --rows.")
        else:
            rows[SHORT[name]] = known[SHORT[name]]
    return rows
