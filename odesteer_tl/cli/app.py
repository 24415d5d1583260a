"""The command line as a whole: the group that commands join, and the function that runs one."""

from collections.abc import Sequence

import typer

from odesteer_tl.cli.exit_codes import EPILOG, Ending

app = typer.Typer(
    name="odesteer-tl",
    cls=Ending,
    add_completion=False,
    epilog=EPILOG,
    help="Steer language models by integrating an ODE on their activations.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code, one of `exit_codes.EXIT_CODES`. `argv` None: that of the process."""
    command = typer.main.get_command(app)
    try:
        command.main(args=None if argv is None else list(argv), prog_name="odesteer-tl")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
