"""`odesteer-tl`: the demo, the comparison, fit and generate for one's own texts, and the parity table."""

from odesteer_tl.cli.commands import app, main

__all__ = ["app", "main"]
