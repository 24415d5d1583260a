"""What a sweep will do, before it does it: an evaluation plan that can stand in a paper."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from odesteer_tl._shapes import Position
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.model_info import (
    device_of,
    dtype_of,
    load_weights,
    model_name_of,
    processing_of,
    weights_digest,
)
from odesteer_tl.evaluation.sweeps.ablated import ENTRIES
from odesteer_tl.evaluation.sweeps.fingerprints import fingerprint
from odesteer_tl.evaluation.sweeps.guardrails import Bounds, bounds_text

STOP_RULE = (
    "Strength walks upwards. It stops where the mean over seeds breaks a guardrail, or where twice in a row the "
    "primary metric does not exceed the best one so far, no steering included, by one standard error of the "
    "difference over prompts."
)
OWN_UNITS = "in the unit of the method, relative_T where T is a length, else T."
SHARED_UNIT = "s is relative_T = s where T is a length, else T = s / 0.3 · the method's usual T."
BATCHES = (
    "{} strengths of a place are run at once, and then walked one by one: a stop leaves up to {} of them measured and "
    "unused."
)
ABLATION = (
    "h linear or nonlinear × one step or ten, at the place where the AUCs of both h are largest on average, each at "
    "the strength that spends {:g} nats of KL per token; differences are paired by prompt and seed."
)
MOST_AT_ONCE, MOST_ROWS = 4, 128
"""Strengths of a place in one batch, and continuations: more would leave more of them unused where a walk stops, and
need more memory."""
LIBRARIES = ("odesteer_tl", "torch", "transformers", "transformer_lens", "nnsight")


@dataclass(frozen=True)
class Plan:
    """What is asked for. `strengths`: by method, with `own_units` in the unit of its T. `ablation`: the budget of KL at
    which h linear or nonlinear × one step or ten are run too. `str` prints it; `cells` and `tokens` are the most that
    can be run."""

    methods: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[Position, ...]
    strengths: Mapping[str, tuple[float, ...]]
    own_units: bool
    measures: tuple[str, ...]
    primary: str
    guardrails: Bounds
    seeds: tuple[int, ...]
    keep: int
    prompts: int
    samples: int
    max_new_tokens: int
    ablation: float | None = None
    chat: bool = False

    @property
    def places(self) -> int:
        """At how many places texts are generated, per method."""
        return min(self.keep, len(self.layers) * len(self.positions))

    @property
    def at_once(self) -> int:
        """How many strengths of a place are continued in one batch."""
        longest = max(map(len, self.strengths.values()))
        return max(1, min(MOST_AT_ONCE, longest, MOST_ROWS // (self.prompts * self.samples)))

    def beside(self, name: str, strength: float) -> tuple[float, ...]:
        """The strengths that share a batch with this one, itself among them: always the same, so that a resumed sweep
        computes what it would have."""
        values = self.strengths[name]
        first = values.index(strength) // self.at_once * self.at_once
        return values[first : first + self.at_once]

    @property
    def cells(self) -> int:
        """The most cells: a method at a place, a strength and a seed; once a seed the unsteered model, and each row of
        the ablation."""
        swept = self.places * sum(len(self.strengths[name]) for name in self.methods)
        return len(self.seeds) * (1 + swept + len(self._ablated))

    @property
    def tokens(self) -> int:
        """The most tokens that the cells generate."""
        return self.cells * self.prompts * self.samples * self.max_new_tokens

    @property
    def _ablated(self) -> tuple[str, ...]:
        return () if self.ablation is None else tuple(ENTRIES)

    def __str__(self) -> str:
        columns = [self.primary, *(name for name in self.measures if name != self.primary)]
        screened = len(self.layers) * len(self.positions)
        lines = [
            "Evaluation plan",
            f"Methods: {', '.join(self.methods)}.",
            f"Screening: layers {', '.join(map(str, self.layers))} × positions {', '.join(map(str, self.positions))} = "
            f"{screened} places a method, read in one pass; cross-validated AUC of h, 5 folds.",
            f"Generation: the best {self.places} places of each method; {self.prompts} prompts"
            f"{' in the chat template' if self.chat else ''} × {self.samples} "
            f"continuations of at most {self.max_new_tokens} tokens, seeds {', '.join(map(str, self.seeds))}.",
            "",
            f"| method, strength | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
            f"| no steering |{' |' * len(columns)}",
            *(f"| {name}, {value:g} |{' |' * len(columns)}" for name in self.methods for value in self.strengths[name]),
            *(f"| {name}, {self.ablation:g} nats |{' |' * len(columns)}" for name in self._ablated),
            "",
            f"Strengths: {OWN_UNITS if self.own_units else SHARED_UNIT}",
            f"At most {self.cells} cells (method × place × strength × seed), {self.tokens} tokens.",
            f"Primary metric: {self.primary}, higher is better. Guardrails: "
            f"{'; '.join(bounds_text(self.guardrails)) or 'none'}.",
            f"Stop rule: {STOP_RULE}",
            *([] if self.at_once == 1 else [f"Batches: {BATCHES.format(self.at_once, self.at_once - 1)}"]),
            *([] if self.ablation is None else [f"Ablation: {ABLATION.format(self.ablation)}"]),
        ]
        return "\n".join(lines)


def protocol_of(model: Any, plan: Plan, texts: Mapping[str, Sequence[str]], functions: Mapping[str, Any],
                sampling: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """What must be the same for a folder to be resumed, as plain values, and what of the functions cannot be compared.
    Functions stand with all that they hold, see `fingerprints`; of the model's weights 64 numbers a tensor are read."""
    of_model = model_record(model)  # first, as it loads weights that a function may read too
    prints = {name: fingerprint(one) for name, one in functions.items() if one is not None}
    unread = [f"{part} of {name}" for name, (_, parts) in prints.items() for part in parts]
    return {
        "format": 3,
        "model": of_model,
        "texts": {name: _digest("\n\0".join(of)) for name, of in texts.items()},
        "layers": list(plan.layers),
        "positions": list(plan.positions),
        "own_units": plan.own_units,
        "strengths": {name: list(values) for name, values in plan.strengths.items()},
        "functions": {name: parts for name, (parts, _) in prints.items()},
        "primary": plan.primary,
        "guardrails": {name: list(pair) for name, pair in plan.guardrails.items()},
        "seeds": list(plan.seeds),
        "keep": plan.keep,
        "sampling": dict(sampling),
        "versions": versions(),
    }, unread


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_record(model: Any) -> dict[str, Any]:
    """Name, revision, precision, device and processing of a model, and a digest of some of its weights."""
    load_weights(model)
    config = getattr(backend_of(model).root(model), "config", None)
    own = getattr(getattr(model, "original_model", None), "config", None)  # of a TransformerBridge
    return {
        "name": model_name_of(model),
        "revision": getattr(config, "_commit_hash", None) or getattr(own, "_commit_hash", None),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "device": device_of(model).type,
        "processing": processing_of(model),
        "weights": weights_digest(model),
    }


def versions() -> dict[str, str]:
    """The versions of this package and of the libraries that figures depend on."""
    return {name: found for name in LIBRARIES if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
