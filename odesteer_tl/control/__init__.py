"""Control: steering as feedback over the layers; a fit needs the model, so that it comes after the backends."""

from odesteer_tl.control.a_lqr import ALQR
from odesteer_tl.control.s_pid import SPID

__all__ = ["ALQR", "SPID"]
