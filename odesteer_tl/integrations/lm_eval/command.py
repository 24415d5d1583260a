# pyright: reportMissingImports=false
"""lm-eval's own command line, with the model `odesteer` registered."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lm_eval` with these arguments (None: those of the process). Raises ValueError where it is not installed."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: type pip install 'odesteer_tl[lm-eval]'.") from error
    from odesteer_tl.integrations.lm_eval.model import ODESteerLM  # noqa: F401 — registers itself

    before = sys.argv
    sys.argv = ["lm_eval", *(before[1:] if arguments is None else arguments)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
