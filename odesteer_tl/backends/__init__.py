"""Backends: the same verbs (read a site, write a site, generate) in each model library's own way."""

from odesteer_tl.backends.generating import generate
from odesteer_tl.backends.generation import Generation
from odesteer_tl.backends.models import load_model, processing_of
from odesteer_tl.backends.nnsight.intervening import intervene
from odesteer_tl.backends.reading import collect, collect_layers, read_site
from odesteer_tl.backends.report import Report
from odesteer_tl.backends.scoring import token_losses
from odesteer_tl.backends.steering import steering, steering_hook
from odesteer_tl.backends.texts import tokenise

__all__ = [
    "Generation",
    "Report",
    "collect",
    "collect_layers",
    "generate",
    "intervene",
    "load_model",
    "processing_of",
    "read_site",
    "steering",
    "steering_hook",
    "token_losses",
    "tokenise",
]
