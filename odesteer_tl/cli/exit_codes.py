"""The end of a command: an exit code, and at most one line with the reason. ODESTEER_TL_DEBUG=1 adds the traceback."""

import dis
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from odesteer_tl.cli.messages import in_cli_words, on_one_line
from odesteer_tl.cli.streams import PACKAGE, forget, prepare_streams, warnings_in_a_line
from odesteer_tl.startup.imports import shows_tracebacks, why_not_imported
from odesteer_tl.startup.interrupts import raised_at_work

DONE, WRONG, REFUSED, STOPPED, BUG, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 70, 130, 141

EXIT_CODES = {
    DONE: "done",
    WRONG: "parity found a cell that is wrong or empty",
    REFUSED: "not done, for a reason that you can fix; one line on standard error says which",
    STOPPED: "check or contrastive found a reason not to fit on these texts, and printed it",
    BUG: "a fault of odesteer_tl; ODESTEER_TL_DEBUG=1 shows the traceback",
    INTERRUPTED: "interrupted by Ctrl-C",
    BROKEN_PIPE: "the reader of the output closed it",
}
"""All exit codes. Those above 128 are the codes that a shell reports for SIGINT and SIGPIPE."""

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


class InItsOwnWords(ValueError):
    """Shown as it is: what it names are arguments of another program, and not options of a command here."""


class Ending(TyperGroup):
    """The group of commands. Every command ends with one of `EXIT_CODES`."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line, then leave the process with its exit code."""
        run = super().main
        sys.exit(exit_code_of(lambda: run(*args, standalone_mode=False, **extra)))


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run, and return the exit code; if it is not 0, first print the line with the reason."""
    prepare_streams()
    with warnings_in_a_line():
        code = _code_of(run)
    try:
        sys.stdout.flush()  # so that a closed pipe or a full disc raises here and not when Python exits
    except OSError as error:
        forget(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        error.filename = "standard output"
        return code or _failed(error)
    return code


def _code_of(run: Callable[[], Any]) -> int:
    try:
        with raised_at_work():
            code = run()
        return code if isinstance(code, int) else DONE
    except SystemExit as error:  # from click, if the reader of its help closed the pipe
        broken = isinstance(error.__context__, BrokenPipeError)
        return BROKEN_PIPE if broken else error.code if isinstance(error.code, int) else REFUSED
    except BrokenPipeError:
        return BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BaseException as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Print in one line what failed, and return the exit code."""
    debug = shows_tracebacks()
    if debug:
        traceback.print_exception(error)
    why = reason(error)
    if why is not None:
        print(f"Error: {on_one_line(why)}", file=sys.stderr)
        return REFUSED
    hint = "" if debug else "; ODESTEER_TL_DEBUG=1 before the command shows where"
    print(
        f"Error: this is a fault of odesteer_tl, not yours ({type(error).__name__}: "
        f"{on_one_line(str(error), 400)}). Please report it to its maintainers with the command that you typed{hint}.",
        file=sys.stderr,
    )
    return BUG


def reason(error: BaseException) -> str | None:
    """The reason for which a command failed, in its own words; None for an unexpected error, a fault of the code.

    Errors that this package raises on purpose, and errors of files, networks and memory, are shown to the user. Other
    errors of a library are not: they name its arguments and not those of the command.
    """
    usage = getattr(error, "format_message", None)  # a method of click's errors, which typer includes since 0.26
    if callable(usage):
        context = getattr(error, "ctx", None)
        hint = "" if context is None else f" See {context.command_path} --help."
        return f"{usage()}{hint}"
    if isinstance(error, InItsOwnWords):
        return str(error)
    message = in_cli_words(str(error))
    if isinstance(error, ImportError) and (why := why_not_imported(error)):
        return in_cli_words(why)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in message
    ):
        return "There is not enough memory: use a smaller model, shorter or fewer texts, or fewer tokens."
    if isinstance(error, RuntimeError) and "probability tensor contains" in message:
        return "The model's next-token probabilities are not finite: give a smaller --T or --relative-T."
    if isinstance(error, IndexError) and "out of range in self" in message:  # torch's message for an embedding
        return "A token is outside the model's vocabulary: the tokenizer in its folder belongs to another model."
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    if isinstance(error, OSError) or (isinstance(error, (ValueError, RuntimeError)) and raised_here(error)):
        return message or type(error).__name__
    return None


def raised_here(error: BaseException) -> bool:
    """Whether a `raise` statement of this package raised it; False for a built-in that fails in the package's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
