"""Layers: several fitted methods that act as one, each at its own site, as RepE and ITI do in their papers.

Each part has its own h and v, on the activations of its own site. These include the changes of the parts before it in
the model. One T (or relative_T) applies to all parts, in each part's own unit.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

from odesteer_tl._shapes import Activations, Time, TimeOrStrength
from odesteer_tl.data.origin import Origin
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
    parts' own. Raises ValueError for no parts, for parts that are not fitted methods, and for a part without a layer.
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
                    "ot.collect, or pass layer= to its ContrastiveActivations."
                )

    @property
    def origin(self) -> Origin:
        """The fields that the origins of all parts share; a model is checked against each part's own origin."""
        shared: dict[str, Any] = {}
        for name in ("model_name", "processing", "position"):
            values = {getattr(part.origin, name) for part in self.parts}
            shared |= {name: values.pop()} if len(values) == 1 else {}
        return Origin(**shared)

    @property
    def barrier(self) -> None:
        """None: each part has its own, at its own site."""
        return None

    @property
    def speed(self) -> None:
        """None: each part has its own."""
        return None

    @property
    def usual_T(self) -> float:
        """The least `usual_T` of the parts."""
        return min(part.usual_T for part in self.parts)

    def as_methods(self) -> tuple[Any, ...]:
        """The parts, which a backend carries out instead of the whole."""
        return self.parts

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """The edits of all parts, in the order of a forward pass.

        Raises ValueError for a `layer`, which would move all parts to one layer, and as the parts do.
        """
        return edits_of(self.parts, T, relative_T, layer)

    def portable(self) -> PortableLayers:
        """The parts as plain tensors and functions. Raises ValueError where one of them cannot be sent."""
        return PortableLayers(tuple(part.portable() for part in self.parts))

    def steer(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> NoReturn:
        """Raises ValueError: each part steers the activations of its own site."""
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
