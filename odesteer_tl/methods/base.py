"""What every method is to its users: `steer`, `vector_field`, `trajectory`, `edits`, `to`.

Methods are complete, frozen dataclasses: their fields are all that `ot.save` keeps. What a remote server gets of one is
`portable()`, plain numbers and functions; nnsight's pickler takes that of itself, any other keeps the method.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch

from odesteer_tl._shapes import Activations, Time, TimeOrStrength
from odesteer_tl.data.activations import Origin
from odesteer_tl.flows.barriers import Barrier
from odesteer_tl.flows.flow import Flow, Trajectory
from odesteer_tl.methods.view import View
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.feedback import Feedback
from odesteer_tl.portable.gradients import Copies
from odesteer_tl.portable.integrate import flowed
from odesteer_tl.portable.methods import PortableLayers, PortableMethod, at_strength, steered
from odesteer_tl.portable.precision import check_width, given_back
from odesteer_tl.portable.sites import Site, layer_of
from odesteer_tl.portable.strength import Strength
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

    def steer(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> Activations:
        """a(0) → a(T), shape, dtype and device of `a`; computed in float32, or float64 for float64 activations.

        `T` is a number or a tensor with one value per row; `relative_T` means T = relative_T·‖a‖ for each activation.
        The number T = 0 returns `a` itself. Casting back to bfloat16 loses about 2 % of the displacement at T/‖a‖ = 0.1
        and 17 % at 0.01; what the dtype cannot hold ends at its largest number, with a warning in float16. Finite
        activations up to ‖a‖ = 1e19 stay finite, and a = 0 is no special case: a/‖a‖ is then 0, so that h = wᵀa gives
        a + T w/‖w‖, h = wᵀa/‖a‖ one step towards w, where its gradient vanishes, and relative_T moves nothing. Raises
        ValueError for both or neither of T and relative_T, a T that is not finite or does not fit the rows or the
        dtype, or another d_model than the one fitted, and, of a method whose `view.T` has bounds, for relative_T and
        for a T outside of them.
        """
        moved_on = self._steered(a, Strength.of(T, relative_T).check(a.dtype, self._limits))
        if moved_on.dtype == torch.float16 and moved_on is not a and bool((moved_on.detach().abs() >= 65504).any()):
            warnings.warn("Activations reached the largest number of float16, 65504: give a smaller T.", stacklevel=2)
        return moved_on

    def vector_field(self, a: Activations) -> Activations:
        """The velocity v(a) at T = 0."""
        check_width(a, self.origin.d_model)
        here, x = self._at(a)
        return given_back(here._velocity(x), a.dtype)

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """What a backend carries out: at the site of the fit (`origin.hook_name`; `resid_post` where that is None)
        replace a by steer(a, T); `layer` puts it at the same site of another block.

        A tensor T holds one value per batch row. Raises ValueError where no layer is known, where nothing is steered at
        the site, and as `steer` does.
        """
        site = Site.fitted(self.origin.hook_name, layer_of(self.layer, layer))
        strength, of_query = Strength.of(T, relative_T).check(limits=self._limits), self._of_query
        return [Edit(site, site, at_strength(self._steered, strength, of_query is not None), of_query)]

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

    @property
    def _of_query(self) -> Callable[[Activations], Activations] | None:
        """What is added, T times, to all tokens of a prompt: a vector that its last token decides. None: each token is
        steered by what it is itself."""
        return None

    def _as_travelling(
        self,
        move: Callable[..., torch.Tensor],
        parts: tuple[Any, ...],
        answer: Callable[..., torch.Tensor] | None = None,
    ) -> PortableMethod:
        """What is sent: a(T) = move(a, T, *parts), at the site and width of the fit; `answer`: see PortableMethod."""
        origin = self.origin
        site = self.layer, origin.d_model, origin.processing, origin.hook_name
        return PortableMethod(move, parts, *site, answer, self._limits)

    def _steered(self, a: Activations, strength: Strength) -> Activations:
        return steered(a, strength, self.origin.d_model, lambda *place: self._there(*place)._move)

    @abstractmethod
    def _move(self, x: Activations, T: Time) -> Activations: ...

    @abstractmethod
    def _velocity(self, x: Activations) -> Activations: ...

    def _at(self: Some, a: Activations) -> tuple[Some, Activations]:
        """The method and the activations in the dtype and on the device where they meet."""
        dtype = torch.promote_types(a.dtype, torch.float32)
        return self._there(a.device, dtype), a.to(dtype)

    def _there(self: Some, *place: Any) -> Some:
        """The method on a device and in a dtype; copies are made once."""
        found = self._copies.made.get(place)  # asked in every call
        return found if found is not None else self._copies.at(place, lambda: self.to(*place))

    @cached_property
    def _copies(self) -> Copies:
        return Copies()


class FlowMethod(Method):
    """A method that is one flow: everything follows from `flow` and `barrier`."""

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """Field, solver and number of steps."""

    def trajectory(
        self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None
    ) -> Trajectory:
        """a(t) and h at every step, in the dtype of the computation; `chatters` flags activations where h falls."""
        strength = Strength.of(T, relative_T).check(a.dtype, self._limits)
        check_width(a, self.origin.d_model)
        here, x = self._at(a)
        return here.flow.trajectory(x, strength.at(x), here.barrier)

    def portable(self) -> PortableMethod:
        """The flow in plain numbers, in the direct or the reduced form, whichever holds fewer bytes."""
        return self._as_travelling(flowed, self.flow.parts())

    def _move(self, x: Activations, T: Time) -> Activations:
        return self.flow(x, T)

    def _velocity(self, x: Activations) -> Activations:
        return self.flow.field(x)
