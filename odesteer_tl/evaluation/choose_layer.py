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
from odesteer_tl.backends.checks import whole_number
from odesteer_tl.backends.collect import collect_places
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.backends.tokenize import Texts
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.judged_texts import JUDGED, gains_at, held_out, judged_texts, token_rows
from odesteer_tl.evaluation.layer_choice import Candidate, LayerChoice
from odesteer_tl.evaluation.strength_search import check_budget, search_of
from odesteer_tl.flows.barriers import auc
from odesteer_tl.methods import Method, ODESteer, PointwiseMethod

BEHIND = 0.15
"""A candidate whose AUC is that far below the best, and two standard errors, is not steered by."""


def choose_layer(
    model: Any,
    desired: Texts,
    undesired: Texts,
    method: Any = ODESteer,
    *,
    layers: Iterable[int] | int | None = None,
    positions: Sequence[Position] | Position = ("last", "mean"),
    kl: float = 0.1,
    queries: Texts | None = None,
    paired: bool = False,
    chat_template: Templates = False,
    system: Systems = None,
    prepend_bos: bool | None = None,
    batch_size: int = 24,
    seed: int = 0,
    progress: bool | None = None,
    blocks: Any = None,
) -> LayerChoice:
    """The layer and reading position at which `method`, fitted there, is shown to steer most at `kl` nats.

        choice = ot.choose_layer(model, desired, undesired, method=ot.ODESteer)
        method = ot.calibrate(model, choice.method, prompts).method
        print(choice)                                                       # all candidates, with the reasons

    A quarter of the texts is held out. Everywhere the method is fitted on the others, and the AUC of its h on the
    held-out texts screens: what is .15, and two standard errors, below the best is left out. The others steer held-out
    texts, teacher-forced and without generation, at the strength that spends `kl` nats of KL(unsteered ‖ steered)
    there, and are ranked by the shift, Δ log p(desired) − Δ log p(undesired) in nats, less two standard errors: the
    largest of many noisy shifts would mostly be luck. The neighbours of the best layer are tried after that, and the
    method is fitted once more, on all texts, at the best place.

    `method`: a class with `fit(acts)`, or a function acts → method that acts at one site. `layers`: the candidates;
    None: about eight, evenly spaced from a sixth of the way on, the last block left out. `queries`, `paired`,
    `chat_template`, `system`, `prepend_bos` and `blocks` as for `collect`. With `queries` the beginnings of the answers
    are steered and judged, else what follows the first tokens of a text, after those that all texts share; on both
    sides equally many tokens, 32 at most. `seed` decides what is held out.

    Raises ValueError for fewer than 8 texts a side, position "all", a method of several sites, where nowhere a strength
    spends the budget, and as `collect` and the fit do. Warns where the best shift is not above 0 by two standard
    errors.
    """
    start = time.perf_counter()
    check_budget(kl, "above 0")
    fit, depth = _fit_of(method), layers_of(model, blocks)
    given = [layers] if isinstance(layers, int) else layers
    wanted = _spread(depth) if given is None else sorted({whole_number("layer", layer, 0) for layer in given})
    positions = (positions,) if isinstance(positions, (str, int)) else tuple(positions)
    if not wanted or not positions or "all" in positions:
        raise ValueError(
            'choose_layer needs layers, and positions that are "last", "mean" or indices, one token a text; got '
            f"layers={wanted}, positions={positions}."
        )
    pairs = paired or queries is not None
    rows, starts = token_rows(model, desired, undesired, queries, prepend_bos, chat_template, system)
    held = held_out(len(rows[0]), len(rows[1]), pairs, seed)
    first, second = (torch.nonzero(side).flatten()[:JUDGED].tolist() for side in held)
    texts = judged_texts(model, rows, starts, (first, second), queries is not None, blocks)
    more = range(depth) if layers is None else wanted  # neighbours of the best are read in the same pass
    read: dict[tuple[int, Position], ContrastiveActivations] = {}
    of_places = collect_places(
        model, desired, undesired, more, positions, queries=queries, paired=paired, progress=progress,
        chat_template=chat_template, system=system, prepend_bos=prepend_bos, batch_size=batch_size, blocks=blocks,
    )  # fmt: skip
    for position, of_layers in zip(positions, of_places, strict=True):
        read |= {(acts.layer, position): acts for acts in of_layers if acts.layer is not None}
    found: dict[tuple[int, Position], Candidate] = {}
    fitted: dict[tuple[int, Position], Method] = {}
    near: float | None = None

    def screen(places: list[tuple[int, Position]]) -> list[tuple[int, Position]]:
        for place in places:
            acts = read[place]
            fitted[place] = _checked(fit(acts._take(~held[0], ~held[1])))
            found[place] = Candidate(*place, *_auc(fitted[place], acts._take(*held)))
        return [place for place in places if not _is_behind(found[place], found.values())]

    def steer(places: Iterable[tuple[int, Position]], label: str) -> None:
        nonlocal near
        for place in bar(list(places), label=label, progress=progress):
            found[place], near = _shifted(
                found[place], fitted[place], texts, len(first), pairs, kl, near, min(JUDGED, batch_size)
            )

    everywhere: list[tuple[int, Position]] = [(layer, position) for position in positions for layer in wanted]
    steer(screen(everywhere), "Steering held-out texts")
    best = _best(found, kl)
    if layers is None:
        step = max(1, wanted[1] - wanted[0]) if len(wanted) > 1 else 1
        beside = {best.layer + sign * k for k in (1, step // 2) for sign in (-1, 1) if k > 0}
        new: list[tuple[int, Position]] = [(at, best.position) for at in sorted(beside) if 0 <= at < depth - 1]
        steer(screen([place for place in new if place not in found]), "Steering at neighbouring layers")
        best = _best(found, kl)
    if best.shift is not None and best.shift_error is not None and best.shift <= 2 * best.shift_error:
        warnings.warn(
            f"The best shift, {best.shift:+.2f} ± {best.shift_error:.2f} nats, is not above 0 by two standard errors: "
            "these texts may not hold what you want to steer, or are too few. Look at the table of the candidates.",
            stacklevel=2,
        )
    acts = read[best.layer, best.position]
    ordered = tuple(found[place] for place in sorted(found, key=lambda place: (str(place[1]), place[0])))
    seconds = time.perf_counter() - start
    return LayerChoice(
        best.layer, best.position, fit(acts), acts, ordered, float(kl), (len(first), len(second)), seconds
    )


def _spread(depth: int) -> list[int]:
    """About eight layers from a sixth of the way to the last but one."""
    first, step = depth // 6, max(1, round(depth / 10))
    return list(range(first, max(depth - 1, first + 1), step))


def _fit_of(method: Any) -> Callable[[ContrastiveActivations], Any]:
    """What fits the method. Raises ValueError for what is neither a class with a fit of activations nor a function."""
    fit = getattr(method, "fit", None) if isinstance(method, type) else method
    view = getattr(method, "view", None) if isinstance(method, type) else None
    if isinstance(method, Method) or not callable(fit) or (view is not None and view.needs == "texts and the model"):
        said = getattr(method, "__name__", type(method).__name__)
        raise ValueError(
            f"choose_layer takes a class that is fitted on activations of one site, such as ot.ODESteer, or a function "
            f"acts → method; got {said}."
        )
    return fit


def _checked(method: Any) -> Method:
    if not isinstance(method, PointwiseMethod):
        raise ValueError(
            f"choose_layer compares methods that are fitted on activations of one site; got a {type(method).__name__}."
        )
    return method


def _auc(method: Method, held: ContrastiveActivations) -> tuple[float | None, float | None]:
    """The AUC of h and its standard error (Hanley & McNeil 1982); None where there is no h."""
    barrier = method.to(dtype=torch.float64).barrier
    if barrier is None:
        return None, None
    area = auc(barrier, held.desired.double(), held.undesired.double())
    n, m = len(held.desired), len(held.undesired)
    of_desired, of_undesired = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (n - 1) * (of_desired - area**2) + (m - 1) * (of_undesired - area**2)
    return area, max(spread / (n * m), 0.0) ** 0.5


def _is_behind(one: Candidate, others: Iterable[Candidate]) -> bool:
    """Whether the AUC is below the best by more than `BEHIND`, and than two standard errors of the difference."""
    best = max((other for other in others if other.auc is not None), key=lambda other: other.auc or 0.0, default=one)
    if one.auc is None or best.auc is None or one.auc_error is None or best.auc_error is None:
        return False
    return best.auc - one.auc > max(BEHIND, 2 * (one.auc_error**2 + best.auc_error**2) ** 0.5)


def _shifted(
    place: Candidate,
    method: Method,
    texts: SteeredTexts,
    n_desired: int,
    pairs: bool,
    kl: float,
    near: float | None,
    batch_size: int,
) -> tuple[Candidate, float | None]:
    """The candidate with its shift at the budget, and its displacement over ‖a‖, where the search for the next one
    begins; without a shift where no strength spends the budget."""
    norm, speed = method.origin.typical_norm, method.speed
    search = search_of(method, None)
    unit = 1.0 if search.sought == "relative_T" else None if not norm or not speed else norm / speed
    spent = gains_at(texts, search, kl, search.guess if near is None or unit is None else near * unit, batch_size)
    if spent is None:
        return place, near
    value, gains = spent
    high, low = gains[:n_desired], gains[n_desired:]
    if pairs:
        error = float((high - low).std() / len(high) ** 0.5)
    else:
        error = float((high.var() / len(high) + low.var() / len(low)) ** 0.5)
    ((_, strength),) = search.pairs(value)
    shift = float(high.mean() - low.mean())
    found = replace(place, shift=shift, shift_error=error, strength=strength)
    return found, near if unit is None else value / unit


def _best(found: dict[tuple[int, Position], Candidate], kl: float) -> Candidate:
    measured = [one for one in found.values() if one.shift is not None]
    if not measured:
        raise ValueError(f"Nowhere does a strength spend {kl:g} nats of KL: give another budget, kl=, or method.")
    return max(measured, key=lambda one: one.shown)
