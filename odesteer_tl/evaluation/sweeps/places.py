"""One pass that reads all places, and the AUC of h by which the best of them are taken."""

from collections.abc import Mapping

from odesteer_tl.backends.collect import collect_places
from odesteer_tl.evaluation.choose_layer import Place
from odesteer_tl.evaluation.data import FitData, Source
from odesteer_tl.evaluation.engine import Engine
from odesteer_tl.evaluation.levels import BATCH
from odesteer_tl.evaluation.separation import separations
from odesteer_tl.evaluation.sweeps.asked import Asked
from odesteer_tl.evaluation.sweeps.result import Screened
from odesteer_tl.methods import CAA, PointwiseMethod


def read_places(asked: Asked) -> dict[Place, FitData]:
    """The texts' activations at every place, read in one pass."""
    plan, sides = asked.plan, (asked.texts["desired"], asked.texts["undesired"])
    read = collect_places(
        asked.model, *sides, plan.layers, plan.positions, queries=None, prepend_bos=None, chat_template=False,
        system=None, paired=False, batch_size=BATCH, progress=False, blocks=None,
    )  # fmt: skip
    return {
        (layer, position): FitData(texts=one, source=Source(asked.model, *sides, []))
        for position, of in zip(plan.positions, read, strict=True)
        for layer, one in zip(plan.layers, of, strict=True)
    }


def method_at(engine: Engine, name: str, data: FitData, seed: int) -> PointwiseMethod:
    """The method of a name, fitted at a place. Raises ValueError for one that is not of one site."""
    steerer = engine.fitted(name, data, seed).steerer
    if not isinstance(steerer, PointwiseMethod):
        raise ValueError(f"sweep takes methods of one site, of activations; {name!r} gives {steerer!r}.")
    return steerer


def screened(engine: Engine, asked: Asked, places: Mapping[Place, FitData]) -> tuple[Screened, ...]:
    """The cross-validated AUC of every method's h at every place, CAA's for a method without one; of each method the
    best places are `kept`."""
    plan, found = asked.plan, list[Screened]()
    first = next(iter(places.values()))
    acts = [data.texts.without_sinks(warn=False) for data in places.values()]  # the engine's fits warn of them
    for name in plan.methods:
        own = method_at(engine, name, first, engine.seed).barrier is not None
        fit = (lambda rows, entry=asked.entries[name]: entry.fit(rows, engine.seed)) if own else CAA.fit
        aucs = separations(acts, {name: fit}, progress=False)
        best = sorted(range(len(aucs)), key=lambda i: -aucs[i].auc)[: plan.places]
        found += [
            Screened(name, *place, one.auc, one.error, name if own else "CAA", i in best)
            for i, (place, one) in enumerate(zip(places, aucs, strict=True))
        ]
    return tuple(found)
