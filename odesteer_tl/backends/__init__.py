"""Backends: reading a site, writing a site and generating, for each model library."""

from odesteer_tl.backends.collect import collect, collect_layers, read_site
from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.generate_strengths import generate_strengths
from odesteer_tl.backends.model_info import load_model, processing_of
from odesteer_tl.backends.outputs import Generation
from odesteer_tl.backends.score import token_losses
from odesteer_tl.backends.steer import steering, steering_hook
from odesteer_tl.backends.tokenize import tokenise
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.nnsight.intervene import intervene

__all__ = [
    "Generation",
    "Report",
    "collect",
    "collect_layers",
    "generate",
    "generate_strengths",
    "intervene",
    "load_model",
    "processing_of",
    "read_site",
    "steering",
    "steering_hook",
    "token_losses",
    "tokenise",
]
