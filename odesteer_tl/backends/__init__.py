"""Backends: the same verbs (read a site, write a site, generate) in each model library's own way."""

from odesteer_tl.backends.report import Report
from odesteer_tl.backends.transformer_lens.generating import Generation, generate
from odesteer_tl.backends.transformer_lens.models import load_model, processing_of
from odesteer_tl.backends.transformer_lens.reading import collect, read_site
from odesteer_tl.backends.transformer_lens.scoring import token_losses
from odesteer_tl.backends.transformer_lens.steering import steering, steering_hook
from odesteer_tl.backends.transformer_lens.texts import tokenise

__all__ = [
    "Generation",
    "Report",
    "collect",
    "generate",
    "load_model",
    "processing_of",
    "read_site",
    "steering",
    "steering_hook",
    "token_losses",
    "tokenise",
]
