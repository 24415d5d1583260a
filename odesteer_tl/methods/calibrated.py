"""Calibrated: a fitted method that carries the strength which spends a budget of KL on one model."""

from dataclasses import dataclass
from typing import Any

from odesteer_tl._shapes import Activations, Time, TimeOrStrength
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import Barrier
from odesteer_tl.methods.base import Method
from odesteer_tl.methods.registry import register
from odesteer_tl.portable.calibrated import PortableCalibrated, given_or
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.strength import Strength


@dataclass(frozen=True, eq=False)
class Calibrated(Method):
    """`method` with the strength at which it steers where no T is given; `ot.calibrate` makes it.

        method = ot.calibrate(model, ot.ODESteer.fit(acts), prompts, kl=0.1).method
        with ot.steering(model, method): ...                    # no T
        ot.save(method, "praise")                               # ot.load("praise") steers at the same strength

    `T` or `relative_T`, one of them: the strength. It spends `kl` nats: the mean, or the `quantile`, of KL(unsteered ‖
    steered) over the tokens that `positions` names, in the continuations by the model `model_name` of the prompts whose
    tokens have the SHA-256 `prompts`; `chat`: they stood in a chat template. h and v, and the layer, are the method's.
    A T that is given takes the place of the strength. `ot.steering` and `ot.generate` warn where the strength is used
    on another model, at another layer or other positions. Raises ValueError for both or neither of T and relative_T,
    and for what is no fitted method.
    """

    method: Any
    T: float | None
    relative_T: float | None
    kl: float
    quantile: float | None = None
    prompts: str = ""
    model_name: str = ""
    positions: str = "decoding"
    chat: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method) or isinstance(self.method, Calibrated):
            raise ValueError(f"Calibrated holds one fitted method, such as ot.CAA; got a {type(self.method).__name__}.")
        view = getattr(self.method, "view", None)
        self.strength.check(limits=None if view is None else view.T.limits)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "method":
            raise AttributeError(name)
        if name == "view":
            return self.method.view
        hint = f": ask its method, calibrated.method.{name}" if hasattr(self.method, name) else ""
        raise AttributeError(f"A Calibrated {type(self.method).__name__} has no attribute {name!r}{hint}.")

    @property
    def strength(self) -> Strength:
        """The strength that it carries."""
        return Strength(self.T, self.relative_T)

    @property
    def origin(self) -> Origin:
        """The method's."""
        return self.method.origin

    @property
    def barrier(self) -> Barrier | None:
        """The method's."""
        return self.method.barrier

    @property
    def speed(self) -> float | None:
        """The method's."""
        return self.method.speed

    @property
    def several(self) -> bool:
        """The method's."""
        return self.method.several

    @property
    def usual_T(self) -> float:
        """The method's."""
        return self.method.usual_T

    def as_pair(self) -> tuple[Method, Strength]:
        """The method, and the strength that it carries."""
        return self.method, self.strength

    def steer(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> Activations:
        """As the method's own, at the strength that it carries unless one is given."""
        return self.method.steer(a, given_or(self.strength, T, relative_T))

    def vector_field(self, a: Activations) -> Activations:
        """The method's."""
        return self.method.vector_field(a)

    def trajectory(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> Any:
        """As the method's own, at the strength that it carries unless one is given."""
        return self.method.trajectory(a, given_or(self.strength, T, relative_T))

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """As the method's own, at the strength that it carries unless one is given."""
        return self.method.edits(given_or(self.strength, T, relative_T), layer=layer)

    def portable(self) -> PortableCalibrated:
        """The method in plain numbers, with its strength. Raises ValueError where the method cannot be sent."""
        return PortableCalibrated(self.method.portable(), self.strength)


def without_strength(method: Any) -> Any:
    """The fitted method of a `Calibrated` one; any other as it is: where strengths are sought, none is carried."""
    return method.method if isinstance(method, Calibrated) else method


def positions_name(positions: Any) -> str:
    """The name of a rule, as in "decoding" or "slice(0, 2, None)"; masks are not told apart."""
    return positions if isinstance(positions, str) else repr(positions) if isinstance(positions, slice) else "a mask"


register(Calibrated)
