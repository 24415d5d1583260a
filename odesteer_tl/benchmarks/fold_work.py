"""What one fold needs, made when it is first asked for: the place, the activations, the fits, and the strengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from odesteer_tl._shapes import Position
from odesteer_tl.backends.collect import collect
from odesteer_tl.benchmarks.applied import Applied
from odesteer_tl.benchmarks.benchmark import Fold
from odesteer_tl.benchmarks.continuations import Continuations
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.choose_layer import BATCH, choose_layer
from odesteer_tl.evaluation.data import Source
from odesteer_tl.evaluation.entries import Entry, Prompted
from odesteer_tl.evaluation.levels import Level
from odesteer_tl.methods import CAA, Method
from odesteer_tl.methods.calibrated import without_strength

Steered = tuple[Method, ...] | Prompted


@dataclass(frozen=True)
class Options:
    """What all folds share. `layer`, `position` None: chosen on the fold's fit side by `choose_layer` for CAA, among
    `layers` (None: about eight). `kl`: the budgets. `T`: by row. `prompts`: how many KL is measured on."""

    layer: int | None
    position: Position | None
    layers: tuple[int, ...] | None
    kl: tuple[float, ...]
    T: Mapping[str, float] | float | None
    prompts: int
    max_new_tokens: int
    bos: bool | None

    def labels(self, name: str) -> list[str]:
        """The levels of a row, as the table names them."""
        return [f"KL {budget:g}" for budget in self.kl] + [f"T {T:g}" for T in self.given(name)]

    def count(self, prompts: Sequence[str]) -> int:
        """On how many of these prompts KL is measured."""
        return min(self.prompts, len(prompts))

    def given(self, name: str) -> list[float]:
        """The T that was given for a row."""
        T = self.T.get(name) if isinstance(self.T, Mapping) else self.T
        return [] if T is None else [float(T)]


def check_data(name: str, entry: Entry, fold: Fold) -> None:
    """Raise ValueError for a row that needs pairs of answers to one query, where the fold has none."""
    if entry.on in ("pairs", "queries") and fold.queries is None:
        raise ValueError(
            f"{name!r} cannot be fitted here: it needs pairs of answers to one query, and this benchmark has none."
        )


@dataclass(eq=False)
class FoldWork:
    """The fold, fitted and calibrated."""

    model: Any
    fold: Fold
    entries: Mapping[str, Entry]
    options: Options
    known: tuple[int, Position] | None = None
    """Where `choose_layer` put the cells of this fold that were measured before; None: not known."""
    _fitted: dict[tuple[str, int], Steered] = field(default_factory=dict)
    _levels: dict[tuple[str, int], dict[str, Level]] = field(default_factory=dict)
    _costs: dict[tuple[str, str, int], float] = field(default_factory=dict)

    @cached_property
    def acts(self) -> ContrastiveActivations:
        """The activations of the fit side: at the given place, at that of earlier cells, or at the chosen one."""
        given, fold = self.options, self.fold
        shared: dict[str, Any] = {"queries": fold.queries, "prepend_bos": given.bos, "progress": False}
        sides = fold.desired, fold.undesired
        if given.layer is not None:
            assert given.position is not None  # the benchmark has its own
            return collect(self.model, *sides, given.layer, position=given.position, **shared).without_sinks()
        if self.known is not None:
            layer, position = self.known
            read = collect(self.model, *sides, layer, position=position, batch_size=BATCH, **shared)  # bit for bit
            return read.without_sinks()
        positions = ("last", "mean") if given.position is None else given.position
        return choose_layer(
            self.model, *sides, CAA, layers=given.layers, positions=positions, kl=given.kl[0], **shared
        ).acts

    def know(self, layer: int, position: Position) -> None:
        """Take the place of an earlier cell: choosing it again takes long. Raises ValueError where two cells differ."""
        if self.known not in (None, (layer, position)):
            raise ValueError(
                f"The cells of fold {self.fold.number} are of several places, {self.known} and {(layer, position)}: "
                "remove the lines of one of them from cells.jsonl; their cells are run again."
            )
        self.known = layer, position

    @property
    def place(self) -> dict[str, Any]:
        """Where methods are fitted."""
        return {"layer": self.acts.layer, "position": self.acts.position}

    @cached_property
    def of_fit(self) -> Continuations:
        """On which strengths are found."""
        return self._continuations(self.fold.prompts)

    @cached_property
    def of_test(self) -> Continuations:
        """On which costs are reported."""
        return self._continuations(self.fold.test_prompts)

    def applied(self, name: str, label: str, seed: int) -> tuple[Applied, Level]:
        """What the row does at a level, fitted under `seed`. Raises ValueError, with the row's name, where it cannot be
        fitted on this fold."""
        seed = self._own(name, seed)
        steered, level = self.fitted(name, seed), self.levels(name, seed)[label]
        positions = self.entries[name].positions
        if isinstance(steered, Prompted):
            return Applied(prefix=level.prefix), level
        return Applied(steered, level.strength, positions=positions), level

    def cost(self, name: str, label: str, seed: int) -> float:
        """What the row costs on the test side, in nats."""
        key = name, label, self._own(name, seed)
        if key not in self._costs:
            self._costs[key] = self.of_test.cost(self.applied(*key)[0])
        return self._costs[key]

    def levels(self, name: str, seed: int) -> dict[str, Level]:
        """All levels of a row: those that spend the budgets, and that of a given T for methods whose T is a length or
        that were named."""
        if (name, seed) not in self._levels:
            steered, positions = self.fitted(name, seed), self.entries[name].positions
            found = self.of_fit.levels(steered, self.options.kl, positions)
            if not isinstance(steered, Prompted):
                found = [*found, *(self.of_fit.at_T(steered, T, positions) for T in self.options.given(name))]
            elif not self.entries[name].prompted and self.options.given(name):
                raise ValueError(f"{name!r} makes a Prompted, which has no T: give it as it is, and not a function.")
            self._levels[name, seed] = dict(zip(self.options.labels(name), found, strict=False))
        return self._levels[name, seed]

    def fitted(self, name: str, seed: int) -> Steered:
        """The methods of a row, or its prefixes."""
        if (name, seed) not in self._fitted:
            entry = self.entries[name]
            try:
                made = entry.fit(self._on(entry), seed)
            except ValueError as error:
                raise ValueError(f"{name!r} cannot be fitted here: {error}") from error
            if isinstance(made, Method):
                made = (made,)
            if not isinstance(made, Prompted):
                if not isinstance(made, tuple) or not made or not all(isinstance(one, Method) for one in made):
                    raise ValueError(f"{name!r}: its function returns a fitted method, this one {made!r}.")
                made = tuple(map(without_strength, made))
                self._check_place(name, made)
                if len(made) > 1 and any(isinstance(one, FeedbackController) for one in made):
                    raise ValueError(f"{name!r}: closed loops cannot take turns: name each on its own.")
            self._fitted[name, seed] = made
        return self._fitted[name, seed]

    def _own(self, name: str, seed: int) -> int:
        """One seed for all fits that do not depend on chance, so that they are made and calibrated once."""
        return seed if self.entries[name].by_chance else 0

    def _check_place(self, name: str, methods: tuple[Method, ...]) -> None:
        """Raise ValueError for a method that was fitted at another layer, where its strength would not be sought."""
        here = self.acts.layer
        for method in methods:
            if not method.several and method.layer not in (None, here):
                raise ValueError(
                    f"{name!r} was fitted at layer {method.layer}, and this benchmark fits at layer {here}: give "
                    f"layer={method.layer}."
                )

    def _on(self, entry: Entry) -> Any:
        fold = self.fold
        if entry.on == "model":
            starts = fold.queries or [""] * max(len(fold.desired), len(fold.undesired))
            up, down = ([a + b for a, b in zip(starts, side, strict=False)] for side in (fold.desired, fold.undesired))
            return Source(self.model, up, down, down)
        return self.acts

    def _continuations(self, prompts: list[str]) -> Continuations:
        given, layer = self.options, self.acts.layer
        assert layer is not None
        count = given.count(prompts)
        spread = [prompts[i * len(prompts) // count] for i in range(count)]  # files are often in order of their topics
        return Continuations(self.model, spread, layer, given.max_new_tokens, given.bos)
