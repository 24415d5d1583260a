"""The shift of a method at each place where it may be fitted: on held-out texts, and which place is taken by it."""

from dataclasses import dataclass

from odesteer_tl._shapes import Position
from odesteer_tl.evaluation.divergence import Effects
from odesteer_tl.evaluation.judged_texts import JudgedTexts, effects_at
from odesteer_tl.evaluation.shift import Estimate, combined, in_all_places, in_own_places, pooled
from odesteer_tl.evaluation.strength_search import search_of
from odesteer_tl.methods import Method
from odesteer_tl.portable.strength import Strength

Place = tuple[int, Position]
"""A layer and a reading position."""


@dataclass(frozen=True, eq=False)
class Shift:
    """A place's shift by the words in their `own` places and in all (`everywhere`), an estimate per fold; `counts`: of
    how many texts, per side."""

    own: tuple[Estimate, ...]
    everywhere: tuple[Estimate, ...]
    counts: tuple[int, int]

    @classmethod
    def of(cls, judged: JudgedTexts, effects: Effects) -> "Shift":
        """On the texts of one fold, at the one strength of the effects."""
        own = in_own_places(judged, effects.gains[0])
        return cls((own,), (in_all_places(judged, effects.lifts[0]),), judged.counts)

    def __add__(self, other: "Shift") -> "Shift":
        """On the texts of both, which are others."""
        counts = self.counts[0] + other.counts[0], self.counts[1] + other.counts[1]
        return Shift(self.own + other.own, self.everywhere + other.everywhere, counts)

    @property
    def estimate(self) -> Estimate:
        """Both ways of finding it, weighted by the inverse of their variances."""
        return combined(pooled(self.own), pooled(self.everywhere))


def shift_at(
    method: Method, judged: JudgedTexts, kl: float, near: float | None, batch_size: int
) -> tuple[tuple[Strength, Shift] | None, float | None]:
    """The strength that spends the budget, with the shift there, and its displacement over ‖a‖, where the search for
    the next one begins; None, and the old displacement, where no strength spends it."""
    norm, speed = method.origin.typical_norm, method.speed
    search = search_of(method, None)
    unit = 1.0 if search.sought == "relative_T" else None if not norm or not speed else norm / speed
    guess = search.guess if near is None or unit is None else near * unit
    spent = effects_at(judged.steered, search, kl, guess, batch_size, judged.words)
    if spent is None:
        return None, near
    value, effects = spent
    ((_, strength),) = search.pairs(value)
    return (strength, Shift.of(judged, effects)), near if unit is None else value / unit


def shift_with(method: Method, judged: JudgedTexts, strength: Strength, batch_size: int) -> Shift:
    """The shift at a strength."""
    effects = judged.steered.effects(search_of(method, None).pairs, [strength.value], batch_size, judged.words)
    return Shift.of(judged, effects)


def tied_places(shifts: dict[Place, Estimate]) -> list[Place]:
    """Where the shift is not below the largest by two standard errors of the difference, nor of another sign."""
    most = max(shifts.values(), key=lambda one: one.value)
    return [
        place
        for place, one in shifts.items()
        if most.value - one.value <= 2 * most.error_of_difference(one) and (one.value > 0) == (most.value > 0)
    ]


def middle_place(shifts: dict[Place, Estimate], tied: list[Place]) -> Place:
    """Of places that cannot be told apart that in the middle layer, and of several there that with the largest shift:
    shifts rise and fall slowly with depth, so that the middle is near to whichever is the best."""
    layers = sorted(layer for layer, _ in tied)
    middle = layers[len(layers) // 2]
    return max((place for place in tied if place[0] == middle), key=lambda place: shifts[place].value)
