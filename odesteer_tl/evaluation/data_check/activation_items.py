"""Items about activations: h beyond the surface, the learning curve, odd labels, reading positions, sinks."""

from collections.abc import Sequence
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


def beyond_surface(best: Ranking, trivial: Sequence[Ranking], tried: int) -> Item:
    """h at the best of the `tried` places against the best trivial baseline, on the same held-out texts.

    The best of many is above ½ by chance: it must be so by as many errors as leave 2.5 % for all places together
    (Bonferroni).
    """
    errors = NormalDist().inv_cdf(1 - 0.025 / tried)
    rival = max(trivial, key=lambda one: one.auc)
    more, error = best.minus(rival)
    numbers = {"auc": best.auc, "baseline": rival.auc, "more": more, "error": error}
    said = f"h at {best.name} has AUC {best.auc:.3f}, {rival.name} {rival.auc:.3f}: {more:+.3f} ± {error:.3f}."
    if best.auc - 0.5 <= errors * best.error:
        return Item("surface", "stop", f"{said} h is not above ½ by {errors:.1f} errors, as the best of {tried} places "
                    "by chance may be: nothing is shown to tell the sides apart.",
                    "Check the labels, add texts, or give other layers= and positions=.", numbers)  # fmt: skip
    if more <= 2 * error or more <= 0:
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


def labels(best: Ranking, surface: Surface) -> tuple[Item, list[OddText]]:
    """Texts beyond the middle between both sides, against how many two normal distributions would have there.

    Centre and spread are medians and 1.4826 times the median deviations, which a few wrong labels do not move. A text
    with a wrong label is a usual one of the other side, where its placement is about ½: h beyond the middle tells it.
    """
    n, h = surface.n_desired, best.scores
    sides = h[:n], h[n:]
    centres = [float(side.median()) for side in sides]
    half = max(centres[0] - centres[1], 0.0) / 2
    signs = torch.tensor([1.0] * n + [-1.0] * (len(h) - n), dtype=h.dtype, device="cpu")
    margins = signs * (h - sum(centres) / 2)
    expected = 0.0
    for side, own in zip(sides, centres, strict=True):
        spread = 1.4826 * float((side - own).abs().median()) or 1e-12
        expected += len(side) * NormalDist().cdf(-half / spread)
    wrong = int((margins < 0).sum())
    many = wrong > expected + 3 * (expected + 1) ** 0.5
    odd = [
        OddText("desired" if row < n else "undesired", row if row < n else row - n, float(best.placements[row]),
                float(h[row]), surface.texts[row])
        for row in margins.argsort(stable=True).tolist()[:READ_FIRST] if float(margins[row]) < 0
    ]  # fmt: skip
    item = Item(
        "labels", "look" if many else "pass",
        f"h of {wrong} held-out texts lies nearer to the other side, where {expected:.1f} are expected.",
        "Read the texts below (check.texts): they may be ambiguous or on the wrong side." if many else "",
        {"wrong": wrong, "expected": expected},
    )  # fmt: skip
    return item, odd


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
