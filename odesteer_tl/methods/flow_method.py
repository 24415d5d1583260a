"""Methods that are one flow: a field, a solver and h determine everything else."""

from abc import abstractmethod

from odesteer_tl._shapes import Activations, Time, TimeOrStrength
from odesteer_tl.flows.flow import Flow, Trajectory
from odesteer_tl.methods.pointwise import PointwiseMethod
from odesteer_tl.portable.integrate import flowed
from odesteer_tl.portable.methods import PortableMethod
from odesteer_tl.portable.precision import check_width, in_full
from odesteer_tl.portable.strength import Strength


class FlowMethod(PointwiseMethod):
    """A method that is one flow: a subclass defines `flow` and `barrier`."""

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """Field, solver and number of steps."""

    def trajectory(
        self, a: Activations, T: TimeOrStrength | None = None, *, relative_T: Time | None = None
    ) -> Trajectory:
        """a(t) and h at every step, in the dtype of the computation; `chatters` marks activations where h falls."""
        strength = Strength.of(T, relative_T).check(a.dtype, self._limits)
        check_width(a, self.origin.d_model)
        with in_full(a.device):
            method, x = self._matched(a)
            return method.flow.trajectory(x, strength.at(x), method.barrier)

    def portable(self) -> PortableMethod:
        """The flow as plain tensors and functions, in direct or reduced form, whichever has fewer bytes."""
        return self._as_portable(flowed, self.flow.parts())

    def _move(self, x: Activations, T: Time) -> Activations:
        return self.flow(x, T)

    def _velocity(self, x: Activations) -> Activations:
        return self.flow.field(x)
