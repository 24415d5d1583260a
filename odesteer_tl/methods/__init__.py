"""Methods: one file per published method, each opening with its h and v in the barrier view."""

from odesteer_tl.methods.base import FlowMethod, Method
from odesteer_tl.methods.caa import CAA
from odesteer_tl.methods.gradient_flow import GradientFlow
from odesteer_tl.methods.head_shift import HeadShift
from odesteer_tl.methods.hpr import HPR
from odesteer_tl.methods.iti import ITI
from odesteer_tl.methods.layers import Layers
from odesteer_tl.methods.linear_act import LinearAcT
from odesteer_tl.methods.mimic import MiMiC
from odesteer_tl.methods.odesteer import ODESteer, StepODESteer
from odesteer_tl.methods.random_direction import RandomDirection
from odesteer_tl.methods.re_control import REControl
from odesteer_tl.methods.repe import RepE
from odesteer_tl.methods.truth_flow import TruthFlow
from odesteer_tl.methods.view import View, unified_table

__all__ = [
    "CAA", "HPR", "ITI", "FlowMethod", "GradientFlow", "HeadShift", "Layers", "LinearAcT", "Method", "MiMiC",
    "ODESteer", "REControl", "RandomDirection", "RepE", "StepODESteer", "TruthFlow", "View", "unified_table",
]  # fmt: skip
