"""Control: steering as feedback over the layers. A fit runs the model, so this folder imports the backends."""

from odesteer_tl.control.a_lqr import ALQR
from odesteer_tl.control.diagnostics.bound import Bound, tracking_bound
from odesteer_tl.control.diagnostics.linearity import Linearity, local_linearity, similarity
from odesteer_tl.control.diagnostics.tracking_error import Tracking, set_point_tracking
from odesteer_tl.control.s_pid import SPID

__all__ = [
    "ALQR",
    "SPID",
    "Bound",
    "Linearity",
    "Tracking",
    "local_linearity",
    "set_point_tracking",
    "similarity",
    "tracking_bound",
]
