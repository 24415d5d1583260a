"""One pass that reads all places, the fits there, and the AUC of h by which the best places are taken."""

from typing import Any

from odesteer_tl._shapes import Position
from odesteer_tl.backends.collect import collect_places
from odesteer_tl.evaluation.levels import BATCH
from odesteer_tl.evaluation.separation import separations
from odesteer_tl.evaluation.sweeps.asked import Asked
from odesteer_tl.evaluation.sweeps.result import Screened
from odesteer_tl.methods import CAA, PointwiseMethod

Place = tuple[int, Position]


class Fits:
    """The activations at every place, and the methods fitted there, each once a seed."""

    def __init__(self, asked: Asked) -> None:
        """Read the texts, in one pass."""
        self.asked, plan = asked, asked.plan
        read = collect_places(
            asked.model, asked.texts["desired"], asked.texts["undesired"], plan.layers, plan.positions, queries=None,
            prepend_bos=None, chat_template=False, system=None, paired=False, batch_size=BATCH, progress=False,
            blocks=None,
        )  # fmt: skip
        self.acts: dict[Place, Any] = {
            (layer, position): one
            for position, of in zip(plan.positions, read, strict=True)
            for layer, one in zip(plan.layers, of, strict=True)
        }
        self._fitted: dict[tuple[str, Place, int], PointwiseMethod] = {}

    def of(self, name: str, place: Place, seed: int) -> PointwiseMethod:
        """The method of a name at a place. Raises ValueError for one that is not of one site."""
        key = (name, place, seed)
        if key not in self._fitted:
            fitted = self.asked.entries[name].fit(self.acts[place], seed)
            if not isinstance(fitted, PointwiseMethod):
                raise ValueError(f"sweep takes methods of one site, of activations; {name!r} gives {fitted!r}.")
            self._fitted[key] = fitted
        return self._fitted[key]

    def screened(self) -> tuple[Screened, ...]:
        """The cross-validated AUC of every method's h at every place, CAA's for a method without one; of each method
        the best places are `kept`."""
        plan, found = self.asked.plan, list[Screened]()
        for name in plan.methods:
            own = self.of(name, next(iter(self.acts)), plan.seeds[0]).barrier is not None
            fits = {name: (lambda rows, one=name: self.asked.entries[one].fit(rows, plan.seeds[0])) if own else CAA.fit}
            aucs = separations(list(self.acts.values()), fits, progress=False)
            best = sorted(range(len(aucs)), key=lambda i: -aucs[i].auc)[: plan.places]
            found += [
                Screened(name, *place, one.auc, one.error, name if own else "CAA", i in best)
                for i, (place, one) in enumerate(zip(self.acts, aucs, strict=True))
            ]
        return tuple(found)
