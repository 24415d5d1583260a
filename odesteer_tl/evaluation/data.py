"""The data that a comparison fits its methods on and checks them on."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from odesteer_tl.backends import collect
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.control.base import FeedbackController
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.methods import Method
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


@dataclass(frozen=True, eq=False)
class Material:
    """Activations at one site: `texts` to fit on, `held_out` to check on, and `pairs` if there are any; `source` is the
    model with its texts, or None if the data were activations."""

    texts: ContrastiveActivations
    held_out: ContrastiveActivations
    pairs: ContrastiveActivations | None
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


def material_of(model: Any, data: Any, layer: int | None = None, seed: int = 0) -> Material:
    """Read a `Demo` or a similar object with `model` at `layer` (default: a third of the depth), or split activations.

    Texts are read at the mean of their tokens, as in the demo. Of `ContrastiveActivations` a fifth of the rows is held
    out by `seed`, and `model` is not used. Raises ValueError for data of another kind, and for a `layer` together with
    activations, which have their own.
    """
    if isinstance(data, ContrastiveActivations):
        if layer is not None:
            where = f"at {data.hook_name}" if data.hook_name else "already"
            raise ValueError(
                f"layer is where a model is read, but these activations were read {where}: leave out layer."
            )
        fit, held_out = data.split(seed)
        return Material(fit, held_out, fit if fit.paired else None)
    missing = [name for name in PARTS if not hasattr(data, name)]
    if missing or model is None:
        what = f"{type(data).__name__} lacks {', '.join(missing)}" if missing else "reading them needs a model"
        raise ValueError(
            f"compare takes ContrastiveActivations, or a model and data with the fields of ot.load_demo(): {what}."
        )
    site = layers_of(model) // 3 if layer is None else layer
    return Material(
        collect(model, data.desired, data.undesired, site, position="mean", progress=False),
        collect(model, data.validation_desired, data.validation_undesired, site, position="mean", progress=False),
        pairs_of(model, data.pairs, site) if data.pairs else None,
        Source(model, list(data.desired), list(data.undesired), list(data.validation_undesired)),
    )


def pairs_of(model: Any, pairs: list[dict[str, str]], layer: int) -> ContrastiveActivations:
    """Activations of answers after their queries, the mean over each answer, with those at the ends of the queries."""
    queries, desired, undesired = ([pair[side] for pair in pairs] for side in ("query", "desired", "undesired"))
    return collect(model, desired, undesired, layer, queries=queries, position="mean", progress=False)


def check_place(method: Method, material: Material) -> None:
    """Raise ValueError for a method of another site or of several sites, as it cannot be checked on these activations;
    and for a closed loop without a model, or one that acts only after the site.

    If the layer of the method or of the data is unknown, nothing is checked.
    """
    if isinstance(method, FeedbackController):
        if material.source is None:
            raise ValueError("it steers a model over its layers, but there is none: pass a model, and data with texts")
        if min(method.layers) > (material.texts.layer or 0):
            raise ValueError(
                f"it acts from layer {min(method.layers)} on, but the data are read at layer {material.texts.layer}, "
                "before it has an effect: pass a later layer"
            )
    elif method.several:
        raise ValueError(
            "it acts at several sites, but a comparison reads one: compare each of its parts at its own site"
        )
    acts = material.texts
    data_site, method_site = ((origin.layer, site_name(origin.hook_name)) for origin in (acts.origin, method.origin))
    if None not in (data_site[0], method_site[0]) and data_site != method_site:
        raise ValueError(f"it was fitted at {method.origin.hook_name}, but the data are read at {acts.hook_name}")
