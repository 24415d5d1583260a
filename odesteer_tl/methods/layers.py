"""Layers: several fitted methods that act as one, each at its own site, as RepE and ITI do in their own papers.

h and v are those of the parts, each on the activations of its own site: a part sees what the parts before it in the
model have changed. One T (or relative_T) is for all parts; in what it counts is for each part to say.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

from odesteer_tl._shapes import Activations, Time, TimeOrStrength
from odesteer_tl.data.activations import Origin
from odesteer_tl.methods.base import Method
from odesteer_tl.methods.registry import register
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.methods import PortableLayers, edits_of
from odesteer_tl.portable.strength import Strength


@dataclass(frozen=True, eq=False)
class Layers(Method):
    """`parts`, each at the site that it was fitted at; parts at one site act in the order in which they are given.

        both = ot.Layers(parts=(ot.CAA.fit(acts_at_6), ot.ODESteer.fit(acts_at_9)))

    It steers models, in `ot.steering`, `ot.generate` and `ot.intervene`, and is saved and sent like any method. `layer`
    and `barrier` are None and `origin` holds what all parts share; `steer`, `vector_field` and `trajectory` are the
    parts' own. Raises ValueError for no parts, for what is no method, and for a part that does not know its layer.
    """

    parts: tuple[Any, ...]

    several = True

    def __post_init__(self) -> None:
        if not isinstance(self.parts, (tuple, list)) or len(self.parts) == 0:
            raise ValueError(f"Layers need at least one fitted method: ot.Layers(parts=(a, b)); got {self.parts!r}.")
        object.__setattr__(self, "parts", tuple(self.parts))
        for number, part in enumerate(self.parts):
            if not isinstance(part, Method):
                what = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
                raise ValueError(f"The parts of Layers are fitted methods; part {number} is {what}.")
            if part.layer is None and not part.several:
                raise ValueError(
                    f"Part {number} of Layers, {type(part).__name__}, was fitted without a layer: collect with "
                    "ot.collect, or say layer= where you make its ContrastiveActivations."
                )

    @property
    def origin(self) -> Origin:
        """What the origins of all parts have in common; each part is checked against a model by its own."""
        shared: dict[str, Any] = {}
        for name in ("model_name", "processing", "position"):
            values = {getattr(part.origin, name) for part in self.parts}
            shared |= {name: values.pop()} if len(values) == 1 else {}
        return Origin(**shared)

    @property
    def barrier(self) -> None:
        """None: each part has its own, of the activations at its own site."""
        return None

    @property
    def speed(self) -> None:
        """None: each part has its own."""
        return None

    @property
    def usual_T(self) -> float:
        """The least of its parts'."""
        return min(part.usual_T for part in self.parts)

    def as_methods(self) -> tuple[Any, ...]:
        """The parts: what a backend carries out in place of the whole."""
        return self.parts

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """The edits of all parts, in the order in which a pass comes to them.

        Raises ValueError for a `layer`, which would put all parts at one, and as the parts do.
        """
        return edits_of(self.parts, T, relative_T, layer)

    def portable(self) -> PortableLayers:
        """The parts in plain numbers. Raises ValueError where one of them cannot be sent."""
        return PortableLayers(tuple(part.portable() for part in self.parts))

    def steer(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> NoReturn:
        """Raises ValueError: it is for each part to steer the activations of its own site."""
        Strength.of(T, relative_T)
        raise self._of_parts("steer(a, T)")

    def vector_field(self, a: Activations) -> NoReturn:
        """Raises ValueError, as `steer` does."""
        raise self._of_parts("vector_field(a)")

    def _of_parts(self, call: str) -> ValueError:
        sites = ", ".join(str(part.origin.hook_name or part.layer) for part in self.parts)
        return ValueError(
            f"Layers have one map per site ({sites}): call method.parts[i].{call} with the activations of that site, "
            "or steer the model, ot.steering(model, method, T)."
        )


register(Layers)
