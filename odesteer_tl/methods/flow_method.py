"""Methods that are one flow: a field, a solver and h determine everything else."""

from abc import abstractmethod

from odesteer_tl._shapes import Activations, Time
from odesteer_tl.flows.flow import Flow, Trajectory
from odesteer_tl.methods.pointwise import PointwiseMethod
from odesteer_tl.portable.integrate import flowed
from odesteer_tl.portable.methods import PortableMethod


class FlowMethod(PointwiseMethod):
    """A method that is one flow: a subclass defines `flow` and `barrier`."""

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """Field, solver and number of steps."""

    def portable(self) -> PortableMethod:
        """The flow as plain tensors and functions, in direct or reduced form, whichever has fewer bytes."""
        return self._as_portable(flowed, self.flow.parts())

    def _move(self, x: Activations, T: Time) -> Activations:
        return self.flow(x, T)

    def _velocity(self, x: Activations) -> Activations:
        return self.flow.field(x)

    def _trajectory(self, x: Activations, T: Time) -> Trajectory:
        return self.flow.trajectory(x, T, self.barrier)
