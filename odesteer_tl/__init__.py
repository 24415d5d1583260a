"""Steer language models by integrating an ODE on their activations.

Fit a barrier h(a) = log p₊(a)/p₋(a) on cached activations of desired and undesired text, and walk every activation
uphill along ȧ = ∇h/‖∇h‖, as a hook at `resid_post` of any layer:

    import odesteer_tl as ot

    demo = ot.load_demo()
    acts = ot.collect(demo.model, demo.desired, demo.undesired, layer=2, position="mean")
    method = ot.ODESteer.fit(acts)
    with ot.steering(demo.model, method, relative_T=0.25):
        print(demo.model.generate("The film opens with", max_new_tokens=40))
"""

from odesteer_tl.activations import ContrastiveActivations, Tokenised
from odesteer_tl.artefacts import load, save
from odesteer_tl.backends import collect, generate, load_model, steering, steering_hook
from odesteer_tl.barriers import Barrier, LogRatioBarrier
from odesteer_tl.demo import load_demo
from odesteer_tl.edits import Edit, Site, State
from odesteer_tl.features import Linear, Polynomial, PolynomialSketch, RandomFourier
from odesteer_tl.fields import Constant, Gradient, UnitGradient
from odesteer_tl.flow import Flow, Trajectory
from odesteer_tl.methods import CAA, ITI, GradientFlow, ODESteer, RandomDirection, StepODESteer
from odesteer_tl.solvers import RK4, Euler, Midpoint, integrate

__all__ = [
    "CAA",
    "ITI",
    "RK4",
    "Barrier",
    "Constant",
    "ContrastiveActivations",
    "Edit",
    "Euler",
    "Flow",
    "Gradient",
    "GradientFlow",
    "Linear",
    "LogRatioBarrier",
    "Midpoint",
    "ODESteer",
    "Polynomial",
    "PolynomialSketch",
    "RandomDirection",
    "RandomFourier",
    "Site",
    "State",
    "StepODESteer",
    "Tokenised",
    "Trajectory",
    "UnitGradient",
    "collect",
    "generate",
    "integrate",
    "load",
    "load_demo",
    "load_model",
    "save",
    "steering",
    "steering_hook",
]
