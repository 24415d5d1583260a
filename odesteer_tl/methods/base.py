"""What every method is: its fit, its line in the unified view, and the edits that a backend carries out.

Methods are complete, frozen dataclasses: their fields are all that `ot.save` keeps. What a remote server gets of one is
`portable()`, plain numbers and functions; nnsight's pickler takes that of itself, any other keeps the method.
"""

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, TypeVar

import torch

from odesteer_tl._shapes import Time, TimeOrStrength
from odesteer_tl.data.activations import Origin
from odesteer_tl.flows.barriers import Barrier
from odesteer_tl.methods.view import View
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.feedback import Feedback
from odesteer_tl.portable.methods import PortableLayers, PortableMethod
from odesteer_tl.remote.checks import check_travels, sent_by_nnsight
from odesteer_tl.remote.packing import moved

Some = TypeVar("Some", bound="Method")
"""The method's own class. (Not typing.Self, which beartype checks in classes only, not in functions.)"""


class Method(ABC):
    """A fitted way to move activations. Strength T belongs to `steer`, not to the object: one fit serves a sweep."""

    origin: Origin
    barrier: Barrier | None
    """h of the barrier view: `value(a)`, `grad(a)`; None where the method has none."""

    view: ClassVar[View]
    """The method's line in the unified view; a class of one's own may go without."""

    speed: ClassVar[float | None] = 1.0
    """‖v‖, so that T·speed is about the displacement; None where it varies. CAA overrides it with ‖μ₊ − μ₋‖."""

    several: ClassVar[bool] = False
    """Whether it acts at several layers, so that no `layer=` can move it."""

    @property
    def layer(self) -> int | None:
        """The 0-based block that the method was fitted at; None where it is not known, or `several`."""
        return self.origin.layer

    def to(self: Some, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Some:
        """The same method with its numbers on `device` and in `dtype` (float32 or float64)."""
        return moved(self, device, dtype)

    @abstractmethod
    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """What a backend carries out. Raises ValueError as `Strength` does, and where no layer is known."""

    def portable(self) -> PortableMethod | PortableLayers | Feedback:
        """The method in plain numbers: it steers, and gives edits, where this package is not installed.

        Its numbers are in the precision of the method's own. Raises ValueError where a part of the method cannot be
        sent to a remote server; an object of the user's is judged when it is sent.
        """
        raise ValueError(f"{type(self).__name__} cannot be sent to a remote server: it does not say how it travels.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not sent_by_nnsight():
            return super().__reduce_ex__(protocol)
        sent = self.portable()
        check_travels(sent, f"This {type(self).__name__}")
        return type(sent), sent.init_args()

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone, without copies on other devices."""
        names = {f.name for f in fields(self)} if is_dataclass(self) else set(self.__dict__)
        return {name: value for name, value in self.__dict__.items() if name in names}

    @property
    def usual_T(self) -> float:
        """A T that can be seen: all that was fitted, or a third of an activation's length where T counts in lengths."""
        whole, speed = (view.T.whole if (view := getattr(self, "view", None)) else None), self.speed
        return whole or 1.0 if speed is None else 0.3 * (self.origin.typical_norm or 1.0) / (speed or 1.0)

    @property
    def _limits(self) -> tuple[str, float, float] | None:
        """What `Strength.check` takes: see `Unit`."""
        view = getattr(self, "view", None)
        return None if view is None else view.T.limits
