"""`odesteer-tl`: the demo, the comparison, fit and generate for one's own texts, and the parity table."""

from odesteer_tl.cli.commands import app, main
from odesteer_tl.cli.options import MethodName
from odesteer_tl.cli.starting_points import STARTING_POINTS

__all__ = ["STARTING_POINTS", "MethodName", "app", "main"]
