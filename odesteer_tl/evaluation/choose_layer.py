"""`choose_layer`: at which layer, and from which tokens, a method is shown to steer most at a given KL."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from odesteer_tl._progress import bar
from odesteer_tl._shapes import Position
from odesteer_tl.backends.chat_templates import Systems, Templates
from odesteer_tl.backends.checks import check_layer, whole_number
from odesteer_tl.backends.collect import collect_places
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.backends.tokenize import Texts
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.token_weights import TokenWeights, by_name
from odesteer_tl.data.tokens import reads_several
from odesteer_tl.evaluation.judged_texts import FOLDS, JUDGED, fold_of, token_rows
from odesteer_tl.evaluation.layer_choice import Candidate, LayerChoice
from odesteer_tl.evaluation.place_shifts import Place, Shift, middle_place, shift_at, shift_with, tied_places
from odesteer_tl.evaluation.separation import Separation, placements
from odesteer_tl.evaluation.strength_search import check_budget
from odesteer_tl.methods import Method, ODESteer, PointwiseMethod

BATCH = 24
"""Texts that share a pass unless another number is asked for."""
BEHIND = 0.15
"""A candidate whose AUC is that far below the best, and two standard errors, is not steered by."""


def choose_layer(
    model: Any,
    desired: Texts,
    undesired: Texts,
    method: Any = ODESteer,
    *,
    layers: Iterable[int] | int | None = None,
    positions: Sequence[Position | TokenWeights] | Position | TokenWeights = ("last", "mean"),
    kl: float = 0.1,
    folds: int = FOLDS,
    queries: Texts | None = None,
    paired: bool = False,
    chat_template: Templates = False,
    system: Systems = None,
    prepend_bos: bool | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    progress: bool | None = None,
    remote: bool | str = False,
    blocks: Any = None,
) -> LayerChoice:
    """The layer and reading position at which `method`, fitted there, is shown to steer most at `kl` nats.

        choice = ot.choose_layer(model, desired, undesired, method=ot.ODESteer)
        method = ot.calibrate(model, choice.method, prompts).method
        print(choice)                                                       # all candidates, with the reasons

    A quarter of the texts is held out. Everywhere the method is fitted on the others, and the AUC of its h on the
    held-out texts screens: what is .15, and two standard errors, below the best is left out. The others steer held-out
    texts, teacher-forced and without generation, at the strength that spends `kl` nats of KL(unsteered ‖ steered)
    there; those that these texts cannot tell apart are fitted anew without each of the other quarters, and steer its
    texts with the same strength, which halves the errors. Places are compared by the shift, Δ log p(desired) − Δ log
    p(undesired) in nats, found in two ways that are weighted by the inverse of their variances: from the gain of each
    text's words x where they stand, Σ log q(x) − log p(x), q steered and p unsteered; and from the lift λ(x) of the
    same words, the mean of log q(x) − log p(x) over every steered token of both sides, whatever follows it. The lift is
    free of the chance of which word stands where, which hides the differences between layers. Places whose shift is not
    below the largest by two standard errors of the difference cannot be told apart: of them the middle layer is taken,
    as shifts rise and fall slowly with depth, and there the larger shift. The method is fitted once more at that place,
    on all texts. Texts that are read as an attention sink, such as those of one token, are left out of fits, with a
    warning (`acts.without_sinks`).

    `method`: a class with `fit(acts)`, or a function acts → method that acts at one site. `layers`: the candidates;
    None: about eight, evenly spaced from a sixth of the way on, the last block left out. `folds`: how many of the four
    quarters are held out in their turns; with 1 places are compared by the first alone, which takes about half the
    time. `queries`, `paired`, `chat_template`, `system`, `prepend_bos`, `remote` and `blocks` as for `collect`; a
    server sends back KL, gains and lifts, and no logits. With `queries` the beginnings of the answers are steered and
    judged, else what follows the first tokens of a text, and those that it shares with a text of the other side, as a
    question that both answer; 24 tokens at most. `seed` decides what is held out: of sides of equally many texts the
    same numbers, as they may belong together.

    Raises ValueError for fewer than 8 texts a side, `folds` not in 1 … 4, position "all" or "random:3", a method of
    several sites, where nowhere a strength spends the budget, and as `collect` and the fit do. ConnectionError and
    RuntimeError for a server, as `collect`; other numbers of the right form are not noticed, and decide the layer then.
    Warns where the best shift is not above 0 by two standard errors.
    """
    start = time.perf_counter()
    check_budget(kl, "above 0")
    if whole_number("folds", folds, 1) > FOLDS:
        raise ValueError(f"folds is at most {FOLDS}, the number of quarters; got {folds}.")
    fit = fit_of(method, "choose_layer")
    wanted, positions = candidates(model, layers, positions, blocks, "choose_layer")
    pairs = paired or queries is not None
    rows, starts = token_rows(model, desired, undesired, queries, prepend_bos, chat_template, system)
    held, judged = fold_of(model, rows, starts, pairs, seed, 0, blocks, remote)
    read: dict[Place, ContrastiveActivations] = {}
    of_places = collect_places(
        model, desired, undesired, wanted, positions, queries=queries, paired=paired, progress=progress,
        chat_template=chat_template, system=system, prepend_bos=prepend_bos, batch_size=batch_size, remote=remote,
        blocks=blocks,
    )  # fmt: skip
    for position, of_layers in zip(map(by_name, positions), of_places, strict=True):
        read |= {(acts.layer, position): acts for acts in of_layers if acts.layer is not None}
    fitted = {place: _fitted(fit, acts, held) for place, acts in read.items()}
    found = {place: Candidate(*place, *_auc(fitted[place], read[place]._take(*held))) for place in read}
    shifts: dict[Place, Shift] = {}
    near: float | None = None
    steered = [place for place in read if not _is_behind(found[place], found.values())]
    for place in bar(steered, label="Steering held-out texts", progress=progress):
        spent, near = shift_at(fitted[place], judged, kl, near, min(JUDGED, batch_size))
        if spent is not None:
            found[place] = replace(found[place], strength=spent[0])
            shifts[place] = spent[1]
    if not shifts:
        raise ValueError(f"Nowhere does a strength spend {kl:g} nats of KL: give another budget, kl=, or method.")
    tied = tied_places({place: one.estimate for place, one in shifts.items()})
    for fold in range(1, folds) if len(tied) > 1 else ():
        held, judged = fold_of(model, rows, starts, pairs, seed, fold, blocks, remote)
        for place in bar(tied, label=f"Steering further texts, {fold} of {folds - 1}", progress=progress):
            strength = found[place].strength
            assert strength is not None  # it was found on the first quarter
            there = _fitted(fit, read[place], held)
            shifts[place] += shift_with(there, judged, strength, min(JUDGED, batch_size))
    estimates = {place: one.estimate for place, one in shifts.items()}
    tied = tied_places({place: estimates[place] for place in tied})
    for place, one in estimates.items():
        found[place] = replace(
            found[place], shift=one.value, shift_error=one.error, held_out=shifts[place].counts, tied=place in tied
        )
    best = middle_place(estimates, tied)
    shift = estimates[best]
    if shift.value <= 2 * shift.error:
        warnings.warn(
            f"The shift, {shift.value:+.2f} ± {shift.error:.2f} nats, is not above 0 by two standard errors: "
            "these texts may not hold what you want to steer, or are too few. Look at the table of the candidates.",
            stacklevel=2,
        )
    acts = read[best].without_sinks()
    ordered = tuple(found[place] for place in sorted(found, key=lambda place: (str(place[1]), place[0])))
    seconds = time.perf_counter() - start
    return LayerChoice(*best, fit(acts), acts, ordered, float(kl), seconds)


def candidates(
    model: Any,
    layers: Iterable[int] | int | None,
    positions: Sequence[Position | TokenWeights] | Position | TokenWeights,
    blocks: Any,
    who: str,
) -> tuple[list[int], tuple[Position | TokenWeights, ...]]:
    """The layers, in ascending order, and the positions to compare. Raises ValueError for a layer that the model does
    not have, and in the name of `who` for none, for a position that reads several tokens of a text, and for two weights
    of one name."""
    given = [layers] if isinstance(layers, int) else layers
    wanted = usual_layers(layers_of(model, blocks)) if given is None else given
    wanted = sorted({whole_number("layer", layer, 0) for layer in wanted})
    for layer in wanted:
        check_layer(model, layer, blocks)
    positions = (positions,) if isinstance(positions, (str, int, TokenWeights)) else tuple(positions)
    names = list(map(by_name, positions))
    if not wanted or not names or any(map(reads_several, names)):
        raise ValueError(
            f'{who} needs layers, and positions that are "last", "mean", indices or ot.TokenWeights, one activation a '
            f"text; got layers={wanted}, positions={positions}."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{who} takes each position once, and weights of different names; got {positions}.")
    return wanted, positions


def usual_layers(depth: int) -> list[int]:
    """About eight layers from a sixth of the way to the last but one."""
    first, step = depth // 6, max(1, round(depth / 10))
    return list(range(first, max(depth - 1, first + 1), step))


def fit_of(method: Any, who: str) -> Callable[[ContrastiveActivations], Any]:
    """What fits the method. Raises ValueError for what is neither a class with a fit of activations nor a function,
    in the name of `who`."""
    fit = getattr(method, "fit", None) if isinstance(method, type) else method
    view = getattr(method, "view", None) if isinstance(method, type) else None
    if isinstance(method, Method) or not callable(fit) or (view is not None and view.needs == "texts and the model"):
        said = getattr(method, "__name__", type(method).__name__)
        raise ValueError(
            f"{who} takes a class that is fitted on activations of one site, such as ot.ODESteer, or a function "
            f"acts → method; got {said}."
        )
    return fit


def _fitted(fit: Callable[[ContrastiveActivations], Any], acts: ContrastiveActivations, held: Any) -> Method:
    """The method, fitted on the rows that are not held out."""
    return _checked(fit(acts._take(~held[0], ~held[1]).without_sinks(warn=False)))


def _checked(method: Any) -> Method:
    if not isinstance(method, PointwiseMethod):
        raise ValueError(
            f"choose_layer compares methods that are fitted on activations of one site; got a {type(method).__name__}."
        )
    return method


def _auc(method: Method, held: ContrastiveActivations) -> tuple[float | None, float | None]:
    """The AUC of h and its standard error, as `separation` has it; None where there is no h."""
    barrier = method.to(dtype=torch.float64).barrier
    if barrier is None:
        return None, None
    up, down = (barrier.value(side.double()) for side in (held.desired, held.undesired))
    one = Separation("h", held.layer, held.position, *placements(up, down), held.paired)
    return one.auc, one.error


def _is_behind(one: Candidate, others: Iterable[Candidate]) -> bool:
    """Whether the AUC is below the best by more than `BEHIND`, and than two standard errors of the difference."""
    best = max((other for other in others if other.auc is not None), key=lambda other: other.auc or 0.0, default=one)
    if one.auc is None or best.auc is None or one.auc_error is None or best.auc_error is None:
        return False
    return best.auc - one.auc > max(BEHIND, 2 * (one.auc_error**2 + best.auc_error**2) ** 0.5)
