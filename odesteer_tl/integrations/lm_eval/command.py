# pyright: reportMissingImports=false
"""lm-eval's own command line, with the model `odesteer` registered."""

import sys
from collections.abc import Sequence

from lm_eval.__main__ import cli_evaluate

from odesteer_tl.integrations.lm_eval.model import ODESteerLM as ODESteerLM  # it registers itself


def main(arguments: Sequence[str]) -> None:
    """Run `lm_eval` with these arguments."""
    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
