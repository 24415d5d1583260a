"""`odesteer-tl`: the demo, the comparison, fit and generate for your own texts, and the parity table."""

from odesteer_tl.cli.commands import app, main

__all__ = ["app", "main"]
