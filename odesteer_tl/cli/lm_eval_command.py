"""The command that runs lm-evaluation-harness with the model `odesteer`."""

from importlib.util import find_spec

import typer

from odesteer_tl.cli.app import app
from odesteer_tl.cli.exit_codes import InItsOwnWords, reason

ALL_ARE_ITS_OWN = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command("lm-eval", context_settings=ALL_ARE_ITS_OWN, add_help_option=False)
def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with --model odesteer: all arguments are those of lm_eval (extra lm-eval)."""
    if find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: type pip install 'odesteer_tl[lm-eval]'.")
    from odesteer_tl.integrations.lm_eval.command import main

    try:
        main(context.args)
    except Exception as error:
        if reason(error) is None:
            raise ValueError(f"lm-eval failed ({type(error).__name__}: {error}).") from error
        if isinstance(error, ValueError):
            raise InItsOwnWords(str(error)) from error
        raise
