"""Methods: one file per published method, each opening with its h and v in the barrier view.

What stands in `__all__` is public as `ot.…`. A method of a file that is not imported here is not registered.
"""

from odesteer_tl.methods.ablation import Ablation
from odesteer_tl.methods.angular import Angular
from odesteer_tl.methods.base import Method as Method
from odesteer_tl.methods.caa import CAA
from odesteer_tl.methods.calibrated import Calibrated
from odesteer_tl.methods.flow_method import FlowMethod as FlowMethod
from odesteer_tl.methods.gradient_flow import GradientFlow
from odesteer_tl.methods.head_shift import HeadShift
from odesteer_tl.methods.hpr import HPR
from odesteer_tl.methods.iti import ITI
from odesteer_tl.methods.layers import Layers
from odesteer_tl.methods.linear_act import LinearAcT
from odesteer_tl.methods.mimic import MiMiC
from odesteer_tl.methods.odesteer import ODESteer, StepODESteer
from odesteer_tl.methods.pointwise import PointwiseMethod as PointwiseMethod
from odesteer_tl.methods.random_direction import RandomDirection
from odesteer_tl.methods.re_control import REControl
from odesteer_tl.methods.repe import RepE
from odesteer_tl.methods.truth_flow import TruthFlow

__all__ = [
    "CAA", "HPR", "ITI", "Ablation", "Angular", "Calibrated", "GradientFlow", "HeadShift", "Layers", "LinearAcT",
    "MiMiC", "ODESteer", "REControl", "RandomDirection", "RepE", "StepODESteer", "TruthFlow",
]  # fmt: skip
