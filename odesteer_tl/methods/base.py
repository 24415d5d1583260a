"""The base class of all methods: the fit, the line in the unified view, and the edits that a backend carries out.

Methods are frozen dataclasses: `ot.save` keeps their fields and nothing else. A remote server gets `portable()`, plain
tensors and functions; nnsight's pickler calls it by itself, any other pickler keeps the method.
"""

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, TypeVar

import torch

from odesteer_tl._shapes import Time, TimeOrStrength
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.barriers import Barrier
from odesteer_tl.methods.view import View
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.feedback import Feedback
from odesteer_tl.portable.methods import PortableLayers, PortableMethod
from odesteer_tl.remote.checks import check_travels, sent_by_nnsight
from odesteer_tl.remote.payloads import moved

SomeMethod = TypeVar("SomeMethod", bound="Method")
"""The method's own class. (Not typing.Self, which beartype checks in classes only, not in functions.)"""


class Method(ABC):
    """A fitted way to move activations. Strength T belongs to `steer`, not to the object: one fit serves a sweep."""

    origin: Origin
    barrier: Barrier | None
    """h of the barrier view: `value(a)`, `grad(a)`; None where the method has none."""

    view: ClassVar[View]
    """The method's line in the unified view; a class of the user's may have none."""

    speed: ClassVar[float | None] = 1.0
    """‖v‖, so that T·speed is about the displacement; None where ‖v‖ varies. CAA overrides it with ‖μ₊ − μ₋‖."""

    several: ClassVar[bool] = False
    """Whether the method acts at several layers; then `layer=` cannot move it."""

    @property
    def layer(self) -> int | None:
        """The 0-based block that the method was fitted at; None where that is unknown or `several`."""
        return self.origin.layer

    def to(self: SomeMethod, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SomeMethod:
        """The same method with its tensors on `device` and in `dtype` (float32 or float64)."""
        return moved(self, device, dtype)

    @abstractmethod
    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """The edits that a backend carries out. Raises ValueError as `Strength` does, and for an unknown layer."""

    def portable(self) -> PortableMethod | PortableLayers | Feedback:
        """The method as plain tensors and functions, which steers where this package is not installed.

        The tensors keep the method's precision. Raises ValueError where a part of the method cannot be sent to a remote
        server; objects of the user's are checked when they are sent.
        """
        raise ValueError(f"{type(self).__name__} cannot be sent to a remote server: define portable() in its class.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not sent_by_nnsight():
            return super().__reduce_ex__(protocol)
        sent = self.portable()
        check_travels(sent, f"This {type(self).__name__}")
        return type(sent), sent.init_args()

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone, without cached copies on other devices."""
        names = {f.name for f in fields(self)} if is_dataclass(self) else set(self.__dict__)
        return {name: value for name, value in self.__dict__.items() if name in names}

    @property
    def usual_T(self) -> float:
        """A T with a visible effect: the whole fitted map, or a third of the activations' norm where T is a length."""
        whole, speed = (view.T.whole if (view := getattr(self, "view", None)) else None), self.speed
        return whole or 1.0 if speed is None else 0.3 * (self.origin.typical_norm or 1.0) / (speed or 1.0)

    @property
    def _limits(self) -> tuple[str, float, float] | None:
        """The bounds of T for `Strength.check`: see `Unit`."""
        view = getattr(self, "view", None)
        return None if view is None else view.T.limits
