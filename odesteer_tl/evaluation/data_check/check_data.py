"""`check_data`: before a fit, whether texts show what they are meant to, or what stands on their surface."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from odesteer_tl._progress import bar
from odesteer_tl._shapes import Position
from odesteer_tl.backends.chat_templates import Systems, Templates
from odesteer_tl.backends.checks import check_groups
from odesteer_tl.backends.collect import Groups, collect_places
from odesteer_tl.backends.tokenize import Texts
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.token_weights import TokenWeights
from odesteer_tl.data.tokens import SiteTokens
from odesteer_tl.evaluation.choose_layer import candidates, fit_of
from odesteer_tl.evaluation.data_check.activation_items import beyond_surface, labels, learning, sharpest, sinks
from odesteer_tl.evaluation.data_check.activation_items import positions as best_position
from odesteer_tl.evaluation.data_check.baselines import baselines, heaviest_words
from odesteer_tl.evaluation.data_check.held_out_h import SHARES, h_ranking, learning_curve
from odesteer_tl.evaluation.data_check.near_duplicates import Couples, near, same, units_of
from odesteer_tl.evaluation.data_check.rankings import Ranking, folds_of_units
from odesteer_tl.evaluation.data_check.report import Area, DataCheck, Item
from odesteer_tl.evaluation.data_check.surface import Surface, named, shown, surface_of
from odesteer_tl.evaluation.data_check.surface_items import duplicates, end_tokens, lengths, sizes
from odesteer_tl.evaluation.judged_texts import FEWEST
from odesteer_tl.methods import CAA, ODESteer


def check_data(
    model: Any,
    desired: Texts,
    undesired: Texts,
    method: Any = ODESteer,
    *,
    layers: Iterable[int] | int | None = None,
    positions: Sequence[Position | TokenWeights] | Position | TokenWeights = ("last", "mean"),
    queries: Texts | None = None,
    paired: bool = False,
    groups: Groups | None = None,
    chat_template: Templates = False,
    system: Systems = None,
    prepend_bos: bool | None = None,
    keep_sinks: bool = False,
    batch_size: int = 24,
    seed: int = 0,
    progress: bool | None = None,
    remote: bool | str = False,
    blocks: Any = None,
) -> DataCheck:
    """Looks at contrastive texts before a fit, and says pass, look or stop for each thing, with why and what to do.

        check = ot.check_data(model, desired, undesired)
        print(check)                                                        # or check.to_html("check.html")
        check["length"].verdict, check.verdict                              # of one thing, and the gravest

    On the texts alone: duplicates and near-duplicates (Jaccard index of 5-character shingles ≥ 0.8) within and across
    sides, balance, effective number (texts that are near-duplicates, pairs or of one group count once), lengths, first
    and last tokens. On activations: the cross-validated AUC of the method's h at each of `layers` and `positions`,
    P(h(a₊) > h(a₋)) on texts of folds that the fit did not see, beside that of trivial baselines: length, words, first
    and last token, and h on the mean of the embeddings (`resid_pre` of layer 0). Does h know more than the surface?
    Would more texts help (AUC after fits on 25, 50 and 100 %)? Which texts contradict their label? Which reading
    position is best? Are attention sinks read? Folds cut no pair, group or near-duplicates; errors are over these
    units (DeLong 1988, Obuchowski 1997), and what can be a test of noise is one and no fixed bound.

    The other arguments are those of `choose_layer` and `collect`; the surface is that of the texts, with `queries` of
    the answers, without template and BOS. Where texts are too few in effect, or both sides are the same, no AUC is
    measured, and `check.best` is None. A pass says that nothing was found, not that the labels mean what you mean.

    Raises ValueError for fewer than 8 texts a side, an empty text, a method without h, and as `collect` and the fit do.
    """
    fit = fit_of(method, "check_data")
    wanted, places = candidates(model, layers, positions, blocks, "check_data")
    surface = surface_of(model, desired, undesired)
    n, sides, pairs = surface.n_desired, surface.sides, paired or queries is not None
    _check_sides(sides, pairs, groups)
    whole = surface if queries is None else _after_queries(surface, shown(model, queries))
    exact = same(whole.texts)
    partners = {(row, n + row) for row in range(n)} if pairs else set()
    alike = near(whole.texts)
    units = units_of(sum(sides), alike | partners | _grouped(groups))
    items = [
        *duplicates(alike - (partners - exact), exact, sides),
        *sizes(sides, units),
        lengths(surface, units),
        *end_tokens(surface, units, pairs, seed, lambda token: named(model, token)),
    ]
    if set(whole.texts[:n]) == set(whole.texts[n:]) or any(
        (i.name, i.verdict) == ("effective n", "stop") for i in items
    ):
        return DataCheck(tuple(items), (), (), None, sides)
    folds = folds_of_units(n, units, seed)
    met: dict[Position, SiteTokens] = {}
    own: dict[str, Any] = {
        "queries": queries, "paired": paired, "groups": groups, "chat_template": chat_template, "system": system,
        "prepend_bos": prepend_bos, "keep_sinks": keep_sinks, "batch_size": batch_size, "progress": progress,
        "remote": remote, "blocks": blocks,
    }  # fmt: skip

    def hear(position: Position, tokens: list[SiteTokens]) -> None:
        met[position] = max(tokens, key=lambda one: int((one.sinks & one.named).sum()))

    read = collect_places(model, desired, undesired, wanted, places, hear=hear, **own)
    embedded = collect_places(
        model, desired, undesired, [0], ["mean"], site="resid_pre", hear=lambda *_: None, **own
    )[0][0]  # fmt: skip
    told: list[Item] = []
    at = {(acts.layer, acts.position): acts for of_layers in read for acts in of_layers if _fit_to_rank(acts, told)}
    trivial = baselines(surface, folds, units)
    if _fit_to_rank(embedded, []):
        trivial.append(h_ranking("embeddings", embedded, fit, folds, units))
    found: dict[Any, Ranking] = {}
    for place in bar(list(at), label="Fitting in folds", progress=progress):
        found[place] = h_ranking(f"layer {place[0]}, {place[1]}", at[place], fit, folds, units)
    areas = [Area(one.name, one.auc, one.error) for one in trivial]
    items += [*told[:1], sinks(met, keep_sinks)]
    if not found:
        return DataCheck(tuple(items), (), tuple(areas), None, sides)
    best = max(found, key=lambda place: found[place].auc)
    plain = h_ranking("h of the difference of means", at[best], CAA.fit, folds, units)
    by_h = [replace(found[best], name=f"h at {found[best].name}"), plain]
    of_labels, odd = labels(sharpest(by_h, trivial), whole)
    curve = learning_curve(found[best], at[best], fit, folds, units, seed)
    items += [
        beyond_surface(found[best], trivial, len(found), lambda: heaviest_words(surface)),
        learning(curve, SHARES), of_labels, best_position(found),
    ]  # fmt: skip
    areas += [Area(f"h at {one.name}", one.auc, one.error) for one in found.values()]
    return DataCheck(tuple(items), tuple(odd), tuple(areas), best, sides)


def _check_sides(sides: tuple[int, int], pairs: bool, groups: Groups | None) -> None:
    if min(sides) < FEWEST:
        raise ValueError(
            f"check_data needs at least {FEWEST} texts a side, got {sides[0]} desired and {sides[1]} undesired ones: "
            "fewer show nothing, whatever is found. Add texts."
        )
    if pairs and sides[0] != sides[1]:
        raise ValueError(f"Pairs need as many desired as undesired texts, got {sides[0]} and {sides[1]}.")
    if groups is not None:
        check_groups(groups, sides)


def _after_queries(surface: Surface, queries: list[str]) -> Surface:
    """Each answer after its query, as they are read."""
    if 2 * len(queries) != len(surface.texts):
        raise ValueError(f"queries needs one query per pair, {surface.n_desired}; got {len(queries)}.")
    return replace(surface, texts=[query + answer for query, answer in zip(queries * 2, surface.texts, strict=True)])


def _grouped(groups: Groups | None) -> Couples:
    """Each text with the first of its group."""
    first: dict[int, int] = {}
    ids = [] if groups is None else [int(one) for side in groups for one in side]
    return {(first.setdefault(one, row), row) for row, one in enumerate(ids)}


def _fit_to_rank(acts: ContrastiveActivations, told: list[Item]) -> bool:
    """Whether the sides differ at that place; if not, `told` gets an item. What a fit would warn of, items say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            acts.check()
        except ValueError as error:
            told.append(Item("activations", "look", f"Layer {acts.layer}, position {acts.position!r}: {error}"))
            return False
    return True
