"""Backends: the same verbs (read a site, write a site, generate) in each model library's own way."""

from odesteer_tl.backends.transformer_lens import (
    Generation,
    Report,
    collect,
    generate,
    load_model,
    processing_of,
    read_site,
    steering,
    steering_hook,
    token_losses,
    tokenise,
)

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
