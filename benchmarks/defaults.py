"""Where to read and steer, at one budget of KL: the whole grid, and what `ot.choose_layer` takes of it.

    python scripts/get_smollm2.py smollm2
    python benchmarks/defaults.py smollm2 --data DATA [--axes sentiment toxicity truthfulness] [--seeds 0 1 2]

`DATA` holds rotten_tomatoes/rt-polarity.{pos,neg}, paradetox/paradetox.tsv and truthfulqa/TruthfulQA.csv. A method is
fitted at every layer and reading position on the texts of an axis. At the strength that spends the budget on the
pairs of a judge (its first 50), on which nothing was fitted, the shift is Δ log p(desired answer) − Δ log p(undesired
answer) in nats, mean and standard error over the pairs. The judges: minimal pairs of the embedded grammar for
sentiment, held-out pairs for the other two axes. `choose_layer`, which sees none of the pairs, chooses among the same
layers, last token and mean. Below each grid: the shift where it chose over the largest of the grid, and the rank
correlations of the held-out AUC, and of the shift that `choose_layer` finds, with the shift of the grid. At the end:
what share was reached, by axis and method, by seed and over all seeds. With `--grid-only` nothing is chosen.

The largest of many noisy shifts is too large by chance. So the share is also given over the shift, on one half of the
pairs, of the place that was best on the other half (the mean over 200 such halvings); the interval is of the share
itself, 95 % by a bootstrap over pairs.
"""

import argparse
import csv
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lower_blocks import lower_blocks_kept
from reading_positions import POSITIONS
from reading_positions import read as read_at
from scipy.stats import spearmanr

import odesteer_tl as ot
from odesteer_tl.backends.huggingface.parts import blocks_in
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.evaluation.choose_layer import usual_layers
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.judged_texts import effects_at, token_rows
from odesteer_tl.evaluation.strength_search import search_of
from odesteer_tl.flows.barriers import auc

METHODS = {"CAA": ot.CAA, "ODESteer": ot.ODESteer}
FIT, HELD_OUT, JUDGED = 150, 50, 50
"""Texts a side to fit on, texts a side for the AUC, and pairs to judge by unless more are asked for."""


@dataclass(frozen=True)
class Axis:
    """Texts to fit on and for the AUC (desired, undesired), what each pair of them answers (None where they stand
    alone), and the queries and answers that may judge: all that are left."""

    fit: tuple[list[str], list[str]]
    held_out: tuple[list[str], list[str]]
    queries: tuple[list[str] | None, list[str] | None]
    judge: tuple[list[str], list[str], list[str]]


def sentiment(data: Path, chance: random.Random) -> Axis:
    """Excerpts of reviews; the judge is the embedded grammar."""
    sides = []
    for name in ("pos", "neg"):
        file = data / "rotten_tomatoes" / f"rt-polarity.{name}"
        sides.append(chance.sample(file.read_text(encoding="latin-1").splitlines(), FIT + HELD_OUT))
    pairs = [(pair["query"], pair["desired"], pair["undesired"]) for pair in ot.load_demo().pairs]
    return _axis(sides, None, _first(pairs, JUDGED, chance))


def toxicity(data: Path, chance: random.Random) -> Axis:
    """Sentences and their polite rewrites, as answers to two words that say nothing."""
    with (data / "paradetox" / "paradetox.tsv").open(encoding="utf-8", newline="") as file:
        rows = [(row["neutral1"], row["toxic"]) for row in csv.DictReader(file, delimiter="\t") if row["neutral1"]]
    return _answers([("They wrote:", f" {polite}", f" {toxic}") for polite, toxic in rows], chance)


def truthfulness(data: Path, chance: random.Random) -> Axis:
    """Questions with the best and the first wrong answer."""
    with (data / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [
            (
                f"Q: {row['Question']}\nA:",
                f" {row['Best Answer']}",
                f" {row['Incorrect Answers'].split(';')[0].strip()}",
            )
            for row in csv.DictReader(file)
        ]
    return _answers(rows, chance)


AXES: dict[str, Callable[[Path, random.Random], Axis]] = {
    "sentiment": sentiment, "toxicity": toxicity, "truthfulness": truthfulness,
}  # fmt: skip


def _answers(rows: list[tuple[str, str, str]], chance: random.Random) -> Axis:
    """Of queries with two answers: some to fit on and for the AUC, the others for the judge."""
    end = JUDGED + FIT + HELD_OUT
    ordered = _first(rows, end, chance)
    asked, desired, undesired = map(list, zip(*ordered[JUDGED:end], strict=True))
    return _axis([desired, undesired], asked, ordered[:JUDGED] + ordered[end:])


def _first(rows: list[tuple[str, str, str]], count: int, chance: random.Random) -> list[tuple[str, str, str]]:
    """All rows in an order by chance: first those that are always drawn, which a wish for more leaves as they are."""
    drawn = chance.sample(range(len(rows)), count)
    others = sorted({*range(len(rows))} - {*drawn})
    chance.shuffle(others)
    return [rows[number] for number in [*drawn, *others]]


def _axis(sides: list[list[str]], asked: list[str] | None, judge: list[tuple[str, str, str]]) -> Axis:
    queries, desired, undesired = map(list, zip(*judge, strict=True))
    parted = (None, None) if asked is None else (asked[:FIT], asked[FIT:])
    fit, held_out = (sides[0][:FIT], sides[1][:FIT]), (sides[0][FIT:], sides[1][FIT:])
    return Axis(fit, held_out, parted, (queries, desired, undesired))


def judge_of(model: Any, judge: tuple[list[str], list[str], list[str]], pairs: int) -> SteeredTexts:
    """The judge's first pairs of texts, the desired ones first; their answers are steered."""
    queries, desired, undesired = (side[:pairs] for side in judge)
    rows, starts = token_rows(model, desired, undesired, queries, None, False, None)
    return SteeredTexts.given(model, [*rows[0], *rows[1]], torch.tensor([*starts[0], *starts[1]]))


def shifts_of(judge: SteeredTexts, method: Any, kl: float, few: SteeredTexts | None = None) -> torch.Tensor | None:
    """The shift of each of the judge's pairs at the strength that spends the budget on them, or on the `few` where
    given; None where nothing spends it."""
    search = search_of(method, None)
    spent = effects_at(judge if few is None else few, search, kl, search.guess, batch_size=25)
    if spent is None:
        return None
    effects = spent[1] if few is None else judge.effects(search.pairs, [spent[0]], batch_size=25)
    desired, undesired = effects.gains[0].chunk(2)
    return desired - undesired


def with_error(shifts: torch.Tensor | None) -> tuple[float, float]:
    """Their mean and its standard error."""
    if shifts is None:
        return float("nan"), float("nan")
    return float(shifts.mean()), float(shifts.std() / len(shifts) ** 0.5)


def shares(chosen: torch.Tensor, grid_shifts: dict[Any, torch.Tensor], best: Any) -> tuple[float, list[float], float]:
    """Of the best of the grid: the share that was reached, its interval over pairs, and the share of what is best on
    other pairs than those that judge it."""
    chance, n = torch.Generator().manual_seed(0), len(chosen)
    top = grid_shifts[best]
    draws = torch.randint(n, (2000, n), generator=chance)
    drawn = chosen[draws].mean(1) / top[draws].mean(1)
    mine, theirs = 0.0, 0.0
    for _ in range(200):
        one, other = torch.randperm(n, generator=chance).split(n // 2)[:2]
        there = max(grid_shifts, key=lambda place, one=one: float(grid_shifts[place][one].mean()))
        mine, theirs = mine + float(chosen[other].mean()), theirs + float(grid_shifts[there][other].mean())
    interval = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return float(chosen.mean() / top.mean()), interval, mine / theirs


def main() -> None:
    """Print a grid and its summary for every axis, method and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file or a Hugging Face name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--positions", nargs="+", choices=POSITIONS, default=["last", "mean"], help=_said())
    parser.add_argument("--layers", nargs="+", type=int, help="default: those that choose_layer tries first")
    parser.add_argument("--dtype", default="float32", help="of the model; bfloat16 is faster on CPUs that know it")
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=JUDGED, help="of the judge, as far as there are")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--grid-only", action="store_true", help="do not run choose_layer")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "At blocks", UserWarning)  # sinks are left out, and that is said once a call
    model = ot.load_model(args.model, library="huggingface", dtype=getattr(torch, args.dtype))
    layers = args.layers or usual_layers(layers_of(model))
    setting = f"{args.dtype}, budget {args.kl} nats, {FIT} texts a side, {args.pairs} pairs, torch {torch.__version__}"
    print(f"{args.model}, {setting}")
    results = []
    with lower_blocks_kept(model, blocks_in(model)):
        for seed in args.seeds:
            for axis_name in args.axes:
                results += grids(model, axis_name, seed, layers, args)
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1))
    if not args.grid_only:
        print("\nreached of the best shift of the grid, by seed; shift there")
    for axis_name in () if args.grid_only else args.axes:
        for name in args.methods:
            own = [one for one in results if (one["axis"], one["method"]) == (axis_name, name)]
            reached = ", ".join(
                f"{share:.0%} [{low:.0%}, {high:.0%}], on other pairs {fair:.0%}"
                for share, (low, high), fair in (one["shares"] for one in own)
            )
            shifts = " ".join(f"{one['chosen'][2]:+.2f} ± {one['chosen'][3]:.2f}" for one in own)
            print(f"{axis_name:<13} {name:<9} {reached}; {shifts}")
            share, (low, high) = of_all_seeds(own)
            print(f"{'':<13} all seeds {share:.0%} [{low:.0%}, {high:.0%}]")


def _said() -> str:
    return "; ".join(f"{name}: {said}" for name, said in POSITIONS.items())


def grids(model: Any, axis_name: str, seed: int, layers: list[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The grids of an axis under a seed, one for each method."""
    axis = AXES[axis_name](args.data, random.Random(seed))
    judge, read = judge_of(model, axis.judge, args.pairs), {}
    few = judge_of(model, axis.judge, JUDGED) if args.pairs > JUDGED else None
    for position in args.positions:
        fits, held = (
            read_at(model, sides, layers, position, queries)
            for sides, queries in zip((axis.fit, axis.held_out), axis.queries, strict=True)
        )
        read |= {(acts.layer, position): (acts, out) for acts, out in zip(fits, held, strict=True)}
    return [
        {"axis": axis_name, "method": name, "seed": seed}
        | grid(model, METHODS[name], name, axis_name, seed, axis, (judge, few), read, args)
        for name in args.methods
    ]


def grid(
    model: Any, fitter: Any, name: str, axis_name: str, seed: int, axis: Axis, judges: Any, read: Any, args: Any
) -> dict[str, Any]:
    """One grid, printed, and its numbers."""
    print(f"\n{axis_name}, {name}, seed {seed}\nlayer  position  AUC   shift")
    cells = {}
    for (layer, position), (acts, out) in read.items():
        method = fitter.fit(acts.without_sinks())
        area = auc(method.to(dtype=torch.float64).barrier, out.desired.double(), out.undesired.double())
        shifts = shifts_of(judges[0], method, args.kl, judges[1])
        cells[layer, position] = area, shifts
        said = "spends it nowhere" if shifts is None else "{:+.2f} ± {:.2f}".format(*with_error(shifts))
        print(f"{layer:>5}  {position:<8}  {area:.2f}  {said}", flush=True)
    of_pairs = {place: shifts for place, (_, shifts) in cells.items() if shifts is not None}
    measured = {place: (cells[place][0], with_error(shifts)) for place, shifts in of_pairs.items()}
    best = max(measured, key=lambda place: measured[place][1][0])
    shown: dict[str, Any] = {
        "cells": [[*place, area, None if own is None else own.tolist()] for place, (area, own) in cells.items()]
    }
    if args.grid_only:
        return shown
    choice = ot.choose_layer(
        model, *axis.fit, fitter, layers=args.layers, kl=args.kl, queries=axis.queries[0], seed=seed
    )
    print(choice)
    there = shifts_of(judges[0], choice.method, args.kl, judges[1])
    chosen = with_error(there)
    reached = (float("nan"), [float("nan")] * 2, float("nan")) if there is None else shares(there, of_pairs, best)
    top = measured[best][1]
    by_auc = rank_correlation({place: area for place, (area, _) in measured.items()}, measured)
    found = {(one.layer, one.position): one.shift for one in choice.candidates if one.shift is not None}
    by_shift = rank_correlation(found, measured)
    print(
        f"best of the grid: layer {best[0]}, {best[1]}, {top[0]:+.2f} ± {top[1]:.2f}\n"
        f"choose_layer: layer {choice.layer}, {choice.position}, {chosen[0]:+.2f} ± {chosen[1]:.2f}, "
        f"{reached[0]:.0%} of it ({reached[2]:.0%} of what is best on other pairs), in {choice.seconds:.0f} s\n"
        f"rank correlation with the grid: AUC {by_auc:+.2f}, the shift of choose_layer {by_shift:+.2f}",
        flush=True,
    )
    return shown | {
        "rank_correlations": [by_auc, by_shift],
        "chosen": [choice.layer, choice.position, *chosen], "best": [*best, *top], "shares": reached,
    }  # fmt: skip


def of_all_seeds(results: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """The share of the best that was reached, Σ chosen / Σ best over the seeds, and its interval over their pairs."""
    chance, parts = torch.Generator().manual_seed(0), []
    for one in results:
        of_places = {(layer, position): shifts for layer, position, _, shifts in one["cells"]}
        chosen, best = (torch.tensor(of_places[tuple(one[key][:2])]) for key in ("chosen", "best"))
        draws = torch.randint(len(best), (2000, len(best)), generator=chance)
        parts.append((chosen.mean(), best.mean(), chosen[draws].mean(1), best[draws].mean(1)))
    chosen, best, chosen_drawn, best_drawn = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    interval = (chosen_drawn / best_drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(chosen / best), interval


def rank_correlation(found: dict[Any, float], measured: dict[Any, Any]) -> float:
    """Of what was found with the shifts of the grid, over the places that both have."""
    both = [place for place in found if place in measured]
    correlation: Any = spearmanr([found[place] for place in both], [measured[place][1][0] for place in both])
    return float(correlation.statistic)


if __name__ == "__main__":
    main()
