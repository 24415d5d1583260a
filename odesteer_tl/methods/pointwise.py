"""Methods that map each activation on its own: `steer`, `vector_field`, `trajectory`."""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch

from odesteer_tl._shapes import Activations, Time, TimeOrStrength
from odesteer_tl.flows.flow import Trajectory
from odesteer_tl.methods.base import Method
from odesteer_tl.portable.edits import Edit
from odesteer_tl.portable.gradients import Copies
from odesteer_tl.portable.integrate import per_activation
from odesteer_tl.portable.methods import PortableMethod, at_strength, steered
from odesteer_tl.portable.precision import cast_back, check_width, compute_dtype, in_full
from odesteer_tl.portable.sites import Site, layer_of
from odesteer_tl.portable.strength import Strength

SomeMethod = TypeVar("SomeMethod", bound="PointwiseMethod")
"""The method's own class. (Not typing.Self, which beartype checks in classes only, not in functions.)"""


TRAJECTORY_PARTS = 10
"""The number of equal parts of T in a trajectory of a method without steps of its own."""


class PointwiseMethod(Method):
    """A method whose a(T) depends on a and T alone: `steer` for activations, one edit in a model."""

    def steer(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> Activations:
        """a(0) → a(T), shape, dtype and device of `a`; computed in float32, or float64 for float64 activations,
        also under torch.autocast.

        `T` is a number or a tensor with one value per row; `relative_T` means T = relative_T·‖a‖ for each activation.
        The number T = 0 returns `a` itself. Casting back to bfloat16 loses about 2 % of the displacement at T/‖a‖ = 0.1
        and 17 % at 0.01. Values beyond the dtype's range become its largest number, with a warning in float16. Finite
        activations up to ‖a‖ = 1e19 stay finite. At a = 0, a/‖a‖ counts as 0: h = wᵀa gives a + T w/‖w‖, h = wᵀa/‖a‖
        one step towards w, where its gradient vanishes, and relative_T moves nothing.

        Raises ValueError for both or neither of T and relative_T, for a T that is not finite or does not fit the rows
        or the dtype, and for another d_model than that of the fit. A method whose `view.T` has bounds also raises it
        for relative_T and for a T outside the bounds.
        """
        moved_on = self._steered(a, Strength.of(T, relative_T).check(a.dtype, self._limits))
        if moved_on.dtype == torch.float16 and moved_on is not a and bool((moved_on.detach().abs() >= 65504).any()):
            warnings.warn("Activations reached the largest number of float16, 65504: pass a smaller T.", stacklevel=2)
        return moved_on

    def vector_field(self, a: Activations) -> Activations:
        """The velocity v(a) at T = 0."""
        return self._computed(a, lambda method, x: cast_back(method._velocity(x), a.dtype))

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """One edit for a backend: replace a by steer(a, T) at the site of the fit (`origin.hook_name`; `resid_post`
        where that is None). `layer` moves it to the same site of another block.

        A tensor T holds one value per batch row. Raises ValueError for an unknown layer, for a site that cannot be
        steered, and as `steer` does.
        """
        site = Site.fitted(self.origin.hook_name, layer_of(self.layer, layer))
        strength, of_query = Strength.of(T, relative_T).check(limits=self._limits), self._of_query
        return [Edit(site, site, at_strength(self._steered, strength, of_query is not None), of_query)]

    def trajectory(
        self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None
    ) -> Trajectory:
        """a(t) on the way from t = 0 to T, and h there if the method has one, in the dtype of the computation: at every
        step of a flow, else at t = 0, T/10, …, T. `chatters` marks activations where h falls on the way.

        Raises ValueError as `steer` does.
        """
        strength = Strength.of(T, relative_T).check(a.dtype, self._limits)
        return self._computed(a, lambda method, x: method._trajectory(x, strength.at(x)))

    @property
    def _of_query(self) -> Callable[[Activations], Activations] | None:
        """The map from a prompt's last token to the vector that is added, T times, to all steered tokens. None: each
        token is steered by its own activation."""
        return None

    def _as_portable(
        self,
        move: Callable[..., torch.Tensor],
        parts: tuple[Any, ...],
        answer: Callable[..., torch.Tensor] | None = None,
    ) -> PortableMethod:
        """What is sent: a(T) = move(a, T, *parts), at the site and width of the fit; `answer`: the `correction`
        of PortableMethod."""
        origin = self.origin
        site = self.layer, origin.d_model, origin.processing, origin.hook_name
        return PortableMethod(move, parts, *site, answer, self._limits)

    def _steered(self, a: Activations, strength: Strength) -> Activations:
        return steered(a, strength, self.origin.d_model, lambda *place: self._copy_at(*place)._move)

    @abstractmethod
    def _move(self, x: Activations, T: Time) -> Activations: ...

    @abstractmethod
    def _velocity(self, x: Activations) -> Activations: ...

    def _trajectory(self, x: Activations, T: Time) -> Trajectory:
        parts = range(1, TRAJECTORY_PARTS + 1)
        points = torch.stack([x] + [self._move(x, T * (k / TRAJECTORY_PARTS)) for k in parts])
        h = None if self.barrier is None else self.barrier.value(points)
        forward = torch.as_tensor(per_activation(T, x) >= 0, device=x.device)
        return Trajectory(points, h, forward.squeeze(-1) if forward.ndim else forward)

    def _computed(self: SomeMethod, a: Activations, result: Callable[[SomeMethod, Activations], Any]) -> Any:
        """result(method, a), the method on the device of the activations, and both in the dtype of the computation.

        Raises ValueError for another d_model than that of the fit.
        """
        check_width(a, self.origin.d_model)
        dtype = compute_dtype(a.dtype)
        with in_full(a.device):
            return result(self._copy_at(a.device, dtype), a.to(dtype))

    def _copy_at(self: SomeMethod, *place: Any) -> SomeMethod:
        """The method on a device and in a dtype; each copy is made once."""
        copy = self._copies.made.get(place)  # first without the lambda: this runs in every call
        return copy if copy is not None else self._copies.at(place, lambda: self.to(*place))

    @cached_property
    def _copies(self) -> Copies:
        return Copies()
