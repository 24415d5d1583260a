"""The data that a comparison fits its methods on and checks them on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from odesteer_tl._shapes import Position
from odesteer_tl.backends import collect
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.choose_layer import choose_layer
from odesteer_tl.evaluation.judged_texts import FOLDS
from odesteer_tl.methods import CAA, Method
from odesteer_tl.portable.sites import site_name

On = Literal["texts", "pairs", "queries", "model", "elsewhere"]
"""What a method is fitted on: activations of texts, of pairs of answers, of pairs with their queries; the model with
the texts; or "elsewhere", by the user on unknown data."""

PARTS = ("desired", "undesired", "validation_desired", "validation_undesired", "pairs")
"""The fields of a `Demo` that methods are fitted and checked on."""


class Source(NamedTuple):
    """A model and its texts, for closed loops; `held_out` are undesired texts."""

    model: Any
    desired: list[str]
    undesired: list[str]
    held_out: list[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class FitData:
    """What methods are fitted on at one site: activations of `texts`, of `pairs` if there are any, and `source`, the
    model with its texts, or None if the data were activations."""

    texts: ContrastiveActivations
    pairs: ContrastiveActivations | None = None
    source: Source | None = None

    def on(self, what: On) -> ContrastiveActivations | Source:
        """The activations, or the model and texts, for a method that is fitted on `what`. Raises ValueError where they
        are missing."""
        if what in ("texts", "elsewhere"):
            return self.texts
        if what == "model":
            if self.source is None:
                raise ValueError("it is fitted on texts and the model, but the data are activations")
            return self.source
        if self.pairs is None:
            raise ValueError("it is fitted on pairs of answers to one query, but the data have no pairs")
        if what == "queries" and self.pairs.queries is None:
            raise ValueError("it is fitted on pairs with their queries, but the data have no queries")
        return self.pairs


@dataclass(frozen=True, eq=False, kw_only=True)
class Material(FitData):
    """Beside what methods are fitted on, `held_out` activations to check them on. `place`: where they were read, and
    why, in words."""

    held_out: ContrastiveActivations
    place: str = ""


def material_of(
    model: Any,
    data: Any,
    layer: int | Sequence[int] | None = None,
    position: Position | None = None,
    kl: float = 0.1,
    seed: int = 0,
    folds: int = FOLDS,
) -> Material:
    """Read a `Demo` or a similar object with `model` at `layer` and reading `position`, or split activations.

    What is not given is chosen by `choose_layer` for CAA, the plainest method, at `kl` nats in `folds`, of several
    layers one: one place for all rows, and none that was chosen for ODESteer. Of `ContrastiveActivations` a fifth of
    the rows is held out by `seed`, and `model` is not used. Raises ValueError for data of another kind, for a `layer`
    or `position` together with activations, which have their own, and as `choose_layer`.
    """
    if isinstance(data, ContrastiveActivations):
        if layer is not None or position is not None:
            where = f"at {data.hook_name}" if data.hook_name else "already"
            given = "layer is" if layer is not None else "position is"
            raise ValueError(
                f"{given} where a model is read, but these activations were read {where}: leave out "
                f"{given.removesuffix(' is')}."
            )
        fit, held_out = data.split(seed)
        return Material(texts=fit, held_out=held_out, pairs=fit if fit.paired else None)
    missing = [name for name in PARTS if not hasattr(data, name)]
    if missing or model is None:
        what = f"{type(data).__name__} lacks {', '.join(missing)}" if missing else "reading them needs a model"
        raise ValueError(
            f"compare takes ContrastiveActivations, or a model and data with the fields of ot.load_demo(): {what}."
        )
    sides = list(data.desired), list(data.undesired)
    if not isinstance(layer, int) or position is None:
        positions = ("last", "mean") if position is None else position
        choice = choose_layer(model, *sides, CAA, layers=layer, positions=positions, kl=kl, folds=folds, progress=False)
        layer, position, texts = choice.layer, choice.position, choice.acts
        why = f"where CAA is shown to steer most at {kl:g} nats ({len(choice.candidates)} places tried)"
    else:
        texts, why = collect(model, *sides, layer, position=position, progress=False), "as asked"
    held = data.validation_desired, data.validation_undesired
    return Material(
        texts=texts,
        held_out=collect(model, *held, layer, position=position, progress=False),
        pairs=pairs_of(model, data.pairs, layer, position) if data.pairs else None,
        source=Source(model, *sides, list(data.validation_undesired)),
        place=f"layer {layer}, position {position!r}, {why}",
    )


def pairs_of(model: Any, pairs: list[dict[str, str]], layer: int, position: Position) -> ContrastiveActivations:
    """Activations of answers after their queries, read at `position` of each answer, with those at the ends of the
    queries."""
    queries, desired, undesired = ([pair[side] for pair in pairs] for side in ("query", "desired", "undesired"))
    return collect(model, desired, undesired, layer, queries=queries, position=position, progress=False)


def check_place(method: Method, data: FitData) -> None:
    """Raise ValueError for a method of another site or of several sites, as it cannot be checked on these activations;
    and for a closed loop without a model, or one that acts only after the site.

    If the layer of the method or of the data is unknown, nothing is checked.
    """
    if isinstance(method, FeedbackController):
        if data.source is None:
            raise ValueError("it steers a model over its layers, but there is none: pass a model, and data with texts")
        if min(method.layers) > (data.texts.layer or 0):
            raise ValueError(
                f"it acts from layer {min(method.layers)} on, but the data are read at layer {data.texts.layer}, "
                "before it has an effect: pass a later layer"
            )
    elif method.several:
        raise ValueError(
            "it acts at several sites, but a comparison reads one: compare each of its parts at its own site"
        )
    acts = data.texts
    data_site, method_site = ((origin.layer, site_name(origin.hook_name)) for origin in (acts.origin, method.origin))
    if None not in (data_site[0], method_site[0]) and data_site != method_site:
        raise ValueError(f"it was fitted at {method.origin.hook_name}, but the data are read at {acts.hook_name}")
