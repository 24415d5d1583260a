"""Items about activations: h beyond the surface, the learning curve, odd labels, reading positions, sinks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch

from odesteer_tl.data.tokens import SiteTokens
from odesteer_tl.evaluation.data_check.rankings import Ranking
from odesteer_tl.evaluation.data_check.report import Item, OddText, Verdict
from odesteer_tl.evaluation.data_check.surface import Surface

RISE = 0.03
"""The AUC by which all texts must be ahead of half of them, and two errors, for more to be worth asking for."""
READ_FIRST = 10
DEEP, BEYOND = 1.5, 2.5
"""Half the distances between both sides' middles from which a text lies deep on the other side, and the errors above
what is expected from which their number is worth a look: on planted normal, heavy-tailed and skewed activations without
wrong labels one ranking in a hundred looks (tests/evaluation/data_check/test_labels.py)."""


def beyond_surface(best: Ranking, trivial: Sequence[Ranking], tried: int, words: Callable[[], list[str]]) -> Item:
    """h at the best of the `tried` places against the best trivial baseline, on the same held-out texts.

    The best of many is above ½ by chance: it must be so by as many errors as leave 2.5 % for all places together
    (Bonferroni). `words` gives the heaviest of the bag of words, asked for where that is the baseline.
    """
    errors = NormalDist().inv_cdf(1 - 0.025 / tried)
    rival = max(trivial, key=lambda one: one.auc)
    more, error = best.minus(rival)
    numbers = {"auc": best.auc, "baseline": rival.auc, "more": more, "error": error}
    said = f"h at {best.name} has AUC {best.auc:.3f}, {rival.name} {rival.auc:.3f}: {more:+.3f} ± {error:.3f}."
    if best.auc - 0.5 <= errors * best.error:
        best_of = f", as the best of {tried} places by chance may be" if tried > 1 else ""
        return Item("surface", "stop", f"{said} h is not above ½ by {errors:.1f} errors{best_of}: nothing is shown to "
                    "tell the sides apart.",
                    "Check the labels, add texts, or give other layers= and positions=.", numbers)  # fmt: skip
    if more <= 2 * error or more <= 0:
        if rival.name == "bag of words":
            said += f" Its heaviest words: {', '.join(words())}."
        return Item(
            "surface", "look", f"{said} The activation is not shown to know more than the surface.",
            f"Make the sides alike in {rival.name}, with pairs that differ in what you mean alone, or accept that this "
            "is what will be steered.", numbers,
        )  # fmt: skip
    return Item("surface", "pass", f"{said} The activation knows more than the surface.", "", numbers)


def learning(curve: Sequence[Ranking], shares: Sequence[float]) -> Item:
    """Whether the AUC still rises from half of the texts to all of them."""
    rise, error = curve[-1].minus(curve[-2])
    said = ", ".join(f"{share:.0%}: {one.auc:.3f}" for share, one in zip(shares, curve, strict=True))
    rises = rise > max(RISE, 2 * error)
    return Item(
        "learning", "look" if rises else "pass", f"AUC by share of texts fitted on: {said} (± {curve[-1].error:.3f}).",
        "It still rises: more texts would help." if rises else "",
        {"shares": list(shares), "aucs": [one.auc for one in curve], "rise": rise, "error": error},
    )  # fmt: skip


def sharpest(by_h: Sequence[Ranking], trivial: Sequence[Ranking]) -> list[Ranking]:
    """By what labels are judged: by h, or by the best of the baselines alone where that is ahead by two errors."""
    rival = max(trivial, key=lambda one: one.auc)
    more, error = rival.minus(by_h[0])
    return [rival] if more > 2 * error else list(by_h)


def labels(rankings: Sequence[Ranking], surface: Surface) -> tuple[Item, list[OddText]]:
    """Whether more texts lie deep on the other side, by one of the `rankings`, than by chance; and which to read first.

    Deep: three quarters of the way from the middle of a text's own side to that of the other, where a text with a wrong
    label is, a usual one of the other side. Their number is compared with what two normal distributions have there, and
    with how many lie as far out on the outer side, which a heavy tail fills as much; the larger of both is what is
    expected. Middle and spread are medians and 1.4826 times the median deviations, which a few wrong labels do not
    move. Read first: those that lie nearer to the other side, by the ranking with more of them beyond what is expected.
    """
    depths = [_depth(one) for one in rankings]
    number = max(range(len(depths)), key=lambda place: depths[place].beyond)
    first, best = depths[number], rankings[number]
    many = first.deep > first.expected + BEYOND * (first.expected + 1) ** 0.5
    n, h = surface.n_desired, best.scores
    odd = [
        OddText("desired" if row < n else "undesired", row if row < n else row - n, float(best.placements[row]),
                float(h[row]), surface.texts[row])
        for row in first.margins.argsort(stable=True).tolist()[:READ_FIRST] if float(first.margins[row]) < 0
    ]  # fmt: skip
    item = Item(
        "labels", "look" if many else "pass",
        f"{best.name} puts {first.deep} held-out texts deep on the other side, where texts with a wrong label are; "
        f"{first.expected:.1f} are expected of right ones.",
        "Read the texts below (check.texts): they may be ambiguous or on the wrong side." if many else "",
        {"wrong": first.deep, "expected": first.expected},
    )  # fmt: skip
    return item, odd


@dataclass(frozen=True, eq=False)
class _Depth:
    """How many texts lie `deep` on the other side, how many are `expected` there, and each text's distance from the
    border, below 0 on the other side."""

    deep: int
    expected: float
    margins: torch.Tensor

    @property
    def beyond(self) -> float:
        return (self.deep - self.expected) / (self.expected + 1) ** 0.5


def _depth(ranking: Ranking) -> _Depth:
    n, h = ranking.n_desired, ranking.scores
    sides = h[:n], h[n:]
    centres = [float(side.median()) for side in sides]
    half = max(centres[0] - centres[1], 0.0) / 2
    signs = torch.tensor([1.0] * n + [-1.0] * (len(h) - n), dtype=h.dtype, device="cpu")
    margins = signs * (h - sum(centres) / 2)
    towards = torch.cat([centres[0] - sides[0], sides[1] - centres[1]])
    spreads = [1.4826 * float((side - own).abs().median()) or 1e-12 for side, own in zip(sides, centres, strict=True)]
    normal = sum(
        len(side) * NormalDist().cdf(-DEEP * half / spread) for side, spread in zip(sides, spreads, strict=True)
    )
    outside = int((towards < -DEEP * half).sum())
    return _Depth(int((towards > DEEP * half).sum()), max(normal, float(outside)), margins)


def positions(by_place: dict[tuple[int, Any], Ranking]) -> Item:
    """The best place of each reading position, and whether the best of them can be told from the others."""
    best: dict[Any, tuple[int, Ranking]] = {}
    for (layer, position), one in by_place.items():
        if position not in best or one.auc > best[position][1].auc:
            best[position] = layer, one
    first = max(best, key=lambda position: best[position][1].auc)
    said = "; ".join(f"{p!r} {one.auc:.3f} ± {one.error:.3f} at layer {layer}" for p, (layer, one) in best.items())
    others = [best[first][1].minus(one) for position, (_, one) in best.items() if position != first]
    tied = any(more <= 2 * error for more, error in others)
    end = " (only one was tried)" if not others else ", but not by two errors" if tied else ""
    return Item("position", "pass", f"{said}. position={first!r} is best{end}.", "", {"best": first})


def sinks(sites: dict[Any, SiteTokens], keep_sinks: bool) -> Item:
    """Attention sinks at the layer with most of them: the tokens `named` by a position, `read` or left out."""
    found: Verdict = "pass"
    said, do, numbers = "No token is an attention sink.", "", {}
    counted = {position: int((one.sinks & one.named).sum()) for position, one in sites.items()}
    for position in sorted((p for p in sites if counted[p]), key=str, reverse=True):
        one = sites[position]
        ratio = float(one.norms[one.sinks].median() / one.norms[~one.sinks].median()) if (~one.sinks).any() else 0.0
        read = int((one.sinks & one.named & one.read).sum())
        numbers[str(position)] = {"sinks": counted[position], "read": read, "ratio": ratio}
        if read:
            found = "look"
            said = f"position={position!r} reads {read} attention sinks of {ratio:.0f} times the usual norm"
            said += ", which outweigh the text." if position == "mean" else "."
            do = (
                "Leave out keep_sinks=True." if keep_sinks else "Put text before the token that is read, or drop texts "
            )
            do += "" if keep_sinks else "of one token."
        elif found == "pass":
            said = f"{counted[position]} attention sinks of {ratio:.0f} times the usual norm are left out of "
            said += f"position={position!r}; keep_sinks=True would read them."
    return Item("sinks", found, said, do, numbers)
