"""Methods that move each activation by what it is itself: `steer`, `vector_field`, `trajectory`."""

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
from odesteer_tl.portable.precision import check_width, given_back, in_full
from odesteer_tl.portable.sites import Site, layer_of
from odesteer_tl.portable.strength import Strength

Some = TypeVar("Some", bound="PointwiseMethod")
"""The method's own class. (Not typing.Self, which beartype checks in classes only, not in functions.)"""


STOPS = 10
"""Into how many equal parts of T a trajectory is cut where the method has no steps of its own."""


class PointwiseMethod(Method):
    """A method whose a(T) depends on a and T alone: on activations it is `steer`, in a model one edit."""

    def steer(self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None) -> Activations:
        """a(0) → a(T), shape, dtype and device of `a`; computed in float32, or float64 for float64 activations,
        also under torch.autocast.

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
        with in_full(a.device):
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

    def trajectory(
        self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None
    ) -> Trajectory:
        """a(t) at eleven equal fractions of T, and h at each where the method has one, in the dtype of the computation.

        `chatters` flags activations where h falls on the way. Raises ValueError as `steer` does.
        """
        strength = Strength.of(T, relative_T).check(a.dtype, self._limits)
        check_width(a, self.origin.d_model)
        with in_full(a.device):
            here, x = self._at(a)
            end = strength.at(x)
            points = torch.stack([x] + [here._move(x, end * (k / STOPS)) for k in range(1, STOPS + 1)])
            h = None if here.barrier is None else here.barrier.value(points)
        forward = torch.as_tensor(per_activation(end, x) >= 0, device=x.device)
        return Trajectory(points, h, forward.squeeze(-1) if forward.ndim else forward)

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
