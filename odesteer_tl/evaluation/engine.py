"""The engine of `compare`, the demo and `sweep`: it fits entries where the data were read, and measures them there.

A cell is an entry, the `FitData` of a place, a seed, and a `Level`: a strength, or what spends a budget of KL. What
several cells need is made once: the unsteered continuations of each seed, the texts that KL is measured on, and, until
another entry or place is asked for, the fits and what spends the budgets.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Samples
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.continuations import Outcome, Setting, Steerer, continued
from odesteer_tl.evaluation.data import FitData, check_place
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.entries import Entry, Prompted
from odesteer_tl.evaluation.levels import Costs, Level, levels_of, unsteered_texts
from odesteer_tl.evaluation.runs import Base, Run, prompt_activations, run_at, runs_at, unsteered
from odesteer_tl.methods import Method
from odesteer_tl.methods.calibrated import without_strength


@dataclass(frozen=True, eq=False)
class Fitted:
    """An entry with what its fit made, and `seconds`: how long that took, None for a method that was already fitted."""

    entry: Entry
    steerer: Steerer | Prompted
    seconds: float | None


class Engine:
    """Fits `entries` and measures them on the prompts of `settings`, one per seed. Without settings it only fits."""

    def __init__(self, entries: Mapping[str, Entry], settings: Sequence[Setting], seed: int) -> None:
        """`seed`: of the fits that no seed changes."""
        self.entries, self.seed = entries, seed
        self.settings = {setting.seed: setting for setting in settings}
        self._place: tuple[str, FitData] | None = None
        self._fitted: dict[int, Fitted] = {}
        self._levels: dict[int, list[Level]] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._ends: dict[int, Samples] = {}
        self._texts: dict[tuple[str, ...] | None, SteeredTexts] = {}

    def fitted(self, name: str, data: FitData, seed: int) -> Fitted:
        """The entry of this name fitted on the data, under the seed if that changes the fit. Raises ValueError,
        with the name, where it cannot be fitted there or steered with."""
        if self._place != (name, data):
            self._place, self._fitted, self._levels = (name, data), {}, {}
        own = self._own(name, seed)
        if own not in self._fitted:
            self._fitted[own] = _fitted(name, self.entries[name], data, own)
        return self._fitted[own]

    def levels(self, name: str, data: FitData, seed: int) -> list[Level]:
        """What spends each budget of the settings, see `levels_of`."""
        fitted, own = self.fitted(name, data, seed), self._own(name, seed)
        if own not in self._levels:
            setting = self._at(data, seed)
            self._levels[own] = levels_of(self._written(), setting, fitted.steerer, fitted.entry.positions)
        return self._levels[own]

    def costs(
        self, name: str, data: FitData, seed: int, value: float, prompts: Sequence[str] | None = None
    ) -> Float[Tensor, " tokens"]:
        """KL(unsteered ‖ steered) in nats at every steered token, at one value of the strength, on the model's greedy
        continuations of `prompts`; None: of the validation prompts."""
        fitted = self.fitted(name, data, seed)
        assert not isinstance(fitted.steerer, Prompted)  # a prefix has no strength
        texts, layer = self._written(prompts), self._at(data, seed).layer
        return Costs(texts, layer, fitted.steerer, fitted.entry.positions).at([value])[0]

    def run(self, name: str, data: FitData, seed: int, level: Level) -> Run:
        """The test prompts continued at the level, and judged."""
        fitted = self.fitted(name, data, seed)
        return run_at(self._base(self._at(data, seed)), fitted.steerer, level, fitted.entry.positions)

    def runs(self, name: str, data: FitData, seed: int, levels: Sequence[Level]) -> list[Run]:
        """`run` at each of several levels of a method, all from one batch."""
        fitted = self.fitted(name, data, seed)
        assert isinstance(fitted.steerer, Method)  # neither a prefix nor methods that take turns
        return runs_at(self._base(self._at(data, seed)), fitted.steerer, levels, fitted.entry.positions)

    def unsteered(self, seed: int) -> Run:
        """The test prompts continued without steering, and judged."""
        return unsteered(self._base(self.settings[seed]))

    def _own(self, name: str, seed: int) -> int:
        return seed if self.entries[name].by_chance else self.seed

    def _at(self, data: FitData, seed: int) -> Setting:
        site = data.texts.layer
        assert site is not None  # a model has read it
        return replace(self.settings[seed], layer=site)

    def _base(self, setting: Setting) -> Base:
        seed, layer = setting.seed, setting.layer
        if seed not in self._outcomes:
            self._outcomes[seed] = continued(setting, setting.prompts, setting.samples, None, None)
        if layer not in self._ends:
            self._ends[layer] = prompt_activations(setting)
        return Base(setting, self._outcomes[seed], self._ends[layer])

    def _written(self, prompts: Sequence[str] | None = None) -> SteeredTexts:
        setting = next(iter(self.settings.values()))
        key = None if prompts is None else tuple(prompts)
        if key not in self._texts:
            self._texts[key] = unsteered_texts(
                setting if key is None else replace(setting, validation_prompts=list(key))
            )
        return self._texts[key]


def _fitted(name: str, entry: Entry, data: FitData, seed: int) -> Fitted:
    try:
        acts = data.on(entry.on)
    except ValueError as missing:
        raise ValueError(f"{name!r} cannot be fitted: {missing}.") from missing
    if isinstance(acts, ContrastiveActivations):
        acts = acts.without_sinks()
    start = time.perf_counter()
    try:
        steerer = entry.fit(acts, seed)
        steerer = tuple(map(without_strength, steerer)) if isinstance(steerer, tuple) else without_strength(steerer)
        for method in steerer if isinstance(steerer, tuple) and steerer else (steerer,):
            if isinstance(method, Method):
                check_place(method, data)
                if isinstance(method, FeedbackController) and method is not steerer:
                    raise ValueError("closed loops cannot take turns, as they act even at T = 0: name each on its own")
            elif not isinstance(method, Prompted):
                raise ValueError(f"its function returns a fitted method, this one {method!r}")
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be compared: {error}") from error
    return Fitted(entry, steerer, None if entry.on == "elsewhere" else time.perf_counter() - start)
