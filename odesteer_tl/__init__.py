"""Steer language models by integrating an ODE on their activations.

Fit a barrier h(a) = log p₊(a)/p₋(a) on cached activations of desired and undesired text, and walk every activation
uphill along ȧ = ∇h/‖∇h‖, as a hook at `resid_post` of any layer, or inside an nnsight graph (`ot.intervene`):

    import odesteer_tl as ot

    demo = ot.load_demo()                                              # or a TransformerLens, nnsight or plain model
    acts = ot.collect(demo.model, demo.desired, demo.undesired, layer=2, position="mean")
    method = ot.ODESteer.fit(acts)                                     # ot.CAA, ot.ITI, … have the same interface
    with ot.steering(demo.model, method, relative_T=0.2) as report:    # T is a fifth of each activation's norm
        print(demo.model.generate("The film opens with", max_new_tokens=40))
    print(report.tokens_steered)                                       # {2: 40}
    out = ot.generate(demo.model, demo.prompts, method, relative_T=0.2, do_sample=True, top_p=0.9, seed=0)
    ot.save(method, "praise")                                          # safetensors + JSON; method = ot.load("praise")
"""

import sys as _sys
from types import ModuleType as _ModuleType

# first: any import that follows may fail, or meet a Ctrl-C
from odesteer_tl.startup import imports as _imports  # noqa: F401
from odesteer_tl.startup import interrupts as _interrupts  # noqa: F401

# isort: split
from odesteer_tl import methods as _methods
from odesteer_tl import plots as plots
from odesteer_tl.assets.demo import load_demo
from odesteer_tl.backends import (
    collect,
    collect_layers,
    generate,
    generate_strengths,
    intervene,
    load_model,
    steering,
    steering_hook,
)
from odesteer_tl.control import ALQR, SPID
from odesteer_tl.data.activations import ContrastiveActivations, Tokenised
from odesteer_tl.data.token_weights import TokenWeights
from odesteer_tl.evaluation.calibrate import calibrate
from odesteer_tl.evaluation.calibration import Calibration
from odesteer_tl.evaluation.choose_layer import choose_layer
from odesteer_tl.evaluation.compare import compare
from odesteer_tl.evaluation.contrasts.contrast import Contrast
from odesteer_tl.evaluation.contrasts.contrastive import contrastive
from odesteer_tl.evaluation.data_check.check_data import check_data
from odesteer_tl.evaluation.data_check.report import DataCheck
from odesteer_tl.evaluation.layer_choice import LayerChoice
from odesteer_tl.evaluation.sweeps.run import sweep
from odesteer_tl.flows.barriers import Barrier, LogRatioBarrier
from odesteer_tl.flows.features import Linear, Polynomial, PolynomialSketch, RandomFourier
from odesteer_tl.flows.fields import Constant, Gradient, UnitGradient
from odesteer_tl.flows.flow import Flow, Trajectory
from odesteer_tl.flows.grid_search import Tuned, tune
from odesteer_tl.flows.solvers import RK4, Euler, Midpoint, integrate
from odesteer_tl.methods import *  # noqa: F403 — its __all__ is the public methods
from odesteer_tl.plots.token_map import token_map
from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength
from odesteer_tl.save_load import load, save

__all__ = [
    "ALQR",
    "RK4",
    "SPID",
    "Barrier",
    "Calibration",
    "Constant",
    "Contrast",
    "ContrastiveActivations",
    "DataCheck",
    "Edit",
    "Euler",
    "Flow",
    "Gradient",
    "LayerChoice",
    "Linear",
    "LogRatioBarrier",
    "Midpoint",
    "Polynomial",
    "PolynomialSketch",
    "RandomFourier",
    "Site",
    "State",
    "Strength",
    "TokenWeights",
    "Tokenised",
    "Trajectory",
    "Tuned",
    "UnitGradient",
    "calibrate",
    "check_data",
    "choose_layer",
    "collect",
    "collect_layers",
    "compare",
    "contrastive",
    "generate",
    "generate_strengths",
    "integrate",
    "intervene",
    "load",
    "load_demo",
    "load_model",
    "plots",
    "save",
    "steering",
    "steering_hook",
    "sweep",
    "token_map",
    "tune",
]
__all__ += _methods.__all__


class _Package(_ModuleType):
    """This package. In a remote trace, where it is not installed, `ot` is a `RemoteNamespace` with `ot.intervene`."""

    def __reduce_ex__(self, protocol: object) -> tuple[object, tuple[object, ...]]:
        from odesteer_tl.portable.nnsight.intervene import RemoteNamespace
        from odesteer_tl.remote.checks import sent_by_nnsight

        return (RemoteNamespace, (intervene,)) if sent_by_nnsight() else (__import__, ("odesteer_tl",))


_sys.modules[__name__].__class__ = _Package
