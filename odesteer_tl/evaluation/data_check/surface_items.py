"""Items that need no activation: duplicates, balance, effective number, lengths, first and last tokens."""

from collections.abc import Callable

import torch

from odesteer_tl.evaluation.data_check.near_duplicates import NEAR, Couples
from odesteer_tl.evaluation.data_check.rankings import ranking
from odesteer_tl.evaluation.data_check.report import Item, Verdict
from odesteer_tl.evaluation.data_check.surface import Surface

MANY, MOST = 0.05, 0.5
"""The share of repeated texts from which one looks, within a side, or stops, across; and stops within a side."""
UNEVEN, FEW = 3.0, 30
"""The ratio of the sides, and the independent texts on a side, at which one looks."""
BEYOND, AREA, DISTANCE, DRAWS = 3.0, 0.1, 0.15, 500
"""Lengths are uneven if their AUC is BEYOND errors and AREA from ½; tokens if their distance is above that of all of
500 draws with shuffled labels, by DISTANCE above the mean of these."""


def duplicates(couples: Couples, exact: Couples, sides: tuple[int, int]) -> list[Item]:
    """Within and across sides; `couples` hold the exact ones too."""
    repeats = sorted((b, a) for a, b in couples if (a < sides[0]) == (b < sides[0]))
    inside = dict.fromkeys(b for b, _ in repeats)
    rows = {
        "desired": [b for b in inside if b < sides[0]],
        "undesired": [b - sides[0] for b in inside if b >= sides[0]],
    }
    first = f"the first: {_place(repeats[0][1], sides)} and {_place(repeats[0][0], sides)}; " if repeats else ""
    share = len(inside) / sum(sides)
    apart = [(a, b) for a, b in couples if a < sides[0] <= b]
    across = max(len({a for a, _ in apart}) / sides[0], len({b for _, b in apart}) / sides[1])
    same = sum((a < sides[0] <= b) for a, b in exact)
    near = f"near-duplicates are texts whose Jaccard index of 5-character shingles is at least {NEAR:g}"
    inner: Verdict = "stop" if share >= MOST else "look" if share >= MANY else "pass"
    outer: Verdict = "stop" if across >= MANY else "look" if apart else "pass"
    example = f"the first: {_place(min(apart)[0], sides)} and {_place(min(apart)[1], sides)}; " if apart else ""
    return [
        Item(
            "duplicates", inner, f"{len(inside)} of {sum(sides)} texts ({share:.0%}) repeat one of their side "
            f"({first}{near}).",
            "" if inner == "pass" else 'Keep one of each: drop the rows in check["duplicates"].numbers["rows"], which '
            "--json prints.", {"repeated": len(inside), "share": share, "rows": rows},
        ),
        Item(
            "across", outer,
            f"{len(apart)} couples, {same} of them exact, stand on both sides ({example}{across:.0%} of a side).",
            "" if outer == "pass" else 'Drop these texts on both sides, check["across"].numbers["rows"]; if they are '
            "meant to differ by a word, give them as pairs, paired=True.",
            {"couples": len(apart), "exact": same, "share": across,
             "rows": {"desired": sorted({a for a, _ in apart}), "undesired": sorted({b - sides[0] for _, b in apart})}},
        ),
    ]  # fmt: skip


def _place(row: int, sides: tuple[int, int]) -> str:
    return f"desired {row}" if row < sides[0] else f"undesired {row - sides[0]}"


def sizes(sides: tuple[int, int], units: list[int]) -> list[Item]:
    """The balance of the labels, and how many texts of each side are independent."""
    own = len(set(units[: sides[0]])), len(set(units[sides[0] :]))
    ratio = max(sides) / min(sides)
    uneven: Verdict = "look" if ratio >= UNEVEN else "pass"
    few: Verdict = "stop" if min(own) < 8 else "look" if min(own) < FEW else "pass"
    return [
        Item("balance", uneven, f"{sides[0]} desired to {sides[1]} undesired texts, {ratio:.1f} to 1.",
             "" if uneven == "pass" else "Add texts to the smaller side, or leave some of the larger out.",
             {"ratio": ratio}),
        Item("effective n", few, f"{own[0]} desired and {own[1]} undesired texts are independent, with near-duplicates "
             "and groups counted once.",
             "" if few == "pass" else f"Add texts of other sources: below {FEW} a side no AUC is sharp, below 8 none "
             "says anything.", {"desired": own[0], "undesired": own[1]}),
    ]  # fmt: skip


def lengths(surface: Surface, units: list[int]) -> Item:
    """The AUC of the number of tokens, without a fit."""
    counts = torch.tensor([len(row) for row in surface.tokens], device="cpu")
    everything = torch.ones(len(counts), dtype=torch.bool, device="cpu")
    found = ranking("length", lambda _, held: counts[held], [(everything, everything)], surface.n_desired, units)
    away = abs(found.auc - 0.5)
    uneven = away > max(AREA, BEYOND * found.error)
    medians = [float(side.double().median()) for side in (counts[: surface.n_desired], counts[surface.n_desired :])]
    return Item(
        "length", "look" if uneven else "pass",
        f"A desired text has {medians[0]:g} tokens and an undesired one {medians[1]:g} (medians); of two, the "
        f"desired one is the longer with probability {found.auc:.2f} ± {found.error:.2f}.",
        "Match the lengths: cut the longer side, or pick texts of equal length from both." if uneven else "",
        {"auc": found.auc, "error": found.error},
    )  # fmt: skip


def end_tokens(
    surface: Surface, units: list[int], paired: bool, seed: int, name_of: Callable[[int], str]
) -> list[Item]:
    """Total variation ½ Σ |p₊ − p₋| of first and of last tokens, against shuffled labels, one text a unit and side.
    `name_of`: how a token reads."""
    seen, kept = set(), []
    for row, unit in enumerate(units):
        if (key := (unit, row < surface.n_desired)) not in seen:
            seen.add(key)
            kept.append(row)
    items = []
    for name, place in (("first token", 0), ("last token", -1)):
        ids = torch.tensor([surface.tokens[row][place] for row in kept], device="cpu").unique(return_inverse=True)[1]
        table = torch.nn.functional.one_hot(ids).double()
        first = torch.tensor([row < surface.n_desired for row in kept], device="cpu")
        found, drawn = _distance(table, first), _shuffled(table, first, [units[row] for row in kept], paired, seed)
        usual, most = float(drawn.mean()), float(drawn.max())
        uneven = found > most and found > usual + DISTANCE
        gap = table[first].mean(0) - table[~first].mean(0)
        side = "desired" if float(gap[gap.abs().argmax()]) > 0 else "undesired"
        token = surface.tokens[kept[int((ids == gap.abs().argmax()).nonzero()[0])]][place]
        items.append(Item(
            name, "look" if uneven else "pass",
            f"Total variation {found:.2f} between the sides; shuffled labels give {usual:.2f}, at most {most:.2f}.",
            f"{name_of(token)} is the {name} of {float(gap.abs().max()):.0%} more of the {side} texts: reword, or cut "
            f"the {name}s."
            if uneven else "",
            {"distance": found, "shuffled": usual, "most": most},
        ))  # fmt: skip
    return items


def _distance(table: torch.Tensor, first: torch.Tensor) -> float:
    return float((table[first].mean(0) - table[~first].mean(0)).abs().sum()) / 2


def _shuffled(
    table: torch.Tensor, first: torch.Tensor, units: list[int], paired: bool, seed: int
) -> torch.Tensor:  # pairs are turned round as a whole, and what is not paired is dealt anew
    generator = torch.Generator().manual_seed(seed)
    number = torch.tensor(units, device="cpu").unique(return_inverse=True)[1]
    drawn = []
    for _ in range(DRAWS):
        if paired:
            labels = first ^ (torch.rand(int(number.max()) + 1, generator=generator, device="cpu") < 0.5)[number]
        else:
            labels = first[torch.randperm(len(first), generator=generator, device="cpu")]
        if bool(labels.any()) and not bool(labels.all()):
            drawn.append(_distance(table, labels))
    return torch.tensor(drawn, device="cpu")
