"""Methods: one file per published method, each opening with its h and v in the barrier view."""

from odesteer_tl.methods.base import FlowMethod, Method
from odesteer_tl.methods.caa import CAA
from odesteer_tl.methods.gradient_flow import GradientFlow
from odesteer_tl.methods.iti import ITI
from odesteer_tl.methods.odesteer import ODESteer, StepODESteer
from odesteer_tl.methods.random_direction import RandomDirection

__all__ = ["CAA", "ITI", "FlowMethod", "GradientFlow", "Method", "ODESteer", "RandomDirection", "StepODESteer"]
