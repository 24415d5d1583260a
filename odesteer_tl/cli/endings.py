"""How a command ends: an exit code, and at most one line that says why; a traceback only for who asks for one."""

import dis
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from odesteer_tl._imports import why_not_imported
from odesteer_tl._interrupts import raised_at_work
from odesteer_tl.cli.messages import in_own_words, on_one_line
from odesteer_tl.cli.streams import PACKAGE, forget, prepare_streams, warnings_in_a_line

DONE, WRONG, REFUSED, BUG, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 70, 130, 141

EXIT_CODES = {
    DONE: "done",
    WRONG: "parity found a cell that is wrong or empty",
    REFUSED: "not done, for a reason that you can mend; one line on standard error says what",
    BUG: "a fault of odesteer_tl; ODESTEER_TL_DEBUG=1 shows the traceback",
    INTERRUPTED: "interrupted by Ctrl-C",
    BROKEN_PIPE: "whoever read the output closed it",
}
"""All there are; those from 128 on are what a shell reports of the signals of the same name."""

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


class Ending(TyperGroup):
    """The commands, each of which ends in one of `EXIT_CODES`, whatever happens in it."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line, then leave the process with its exit code."""
        run = super().main
        sys.exit(ended(lambda: run(*args, standalone_mode=False, **extra)))


def ended(run: Callable[[], Any]) -> int:
    """The exit code of `run`, after the line that says why where it is not 0."""
    prepare_streams()
    with warnings_in_a_line():
        code = _code_of(run)
    try:
        sys.stdout.flush()  # a pipe that is closed, or a disc that is full, shows here and not after us
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
    except SystemExit as error:  # from click, where the reader of its help has gone
        broken = isinstance(error.__context__, BrokenPipeError)
        return BROKEN_PIPE if broken else error.code if isinstance(error.code, int) else REFUSED
    except BrokenPipeError:
        return BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BaseException as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Say what failed in one line."""
    debug = os.environ.get("ODESTEER_TL_DEBUG", "") not in ("", "0")
    if debug:
        traceback.print_exception(error)
    why = reason(error)
    if why is not None:
        print(f"Error: {on_one_line(in_own_words(why))}", file=sys.stderr)
        return REFUSED
    hint = "" if debug else "; ODESTEER_TL_DEBUG=1 before the command shows where"
    print(
        f"Error: this is a fault of odesteer_tl, not yours ({type(error).__name__}: "
        f"{on_one_line(str(error), 400)}). Please report it to its maintainers with the command that you typed{hint}.",
        file=sys.stderr,
    )
    return BUG


def reason(error: BaseException) -> str | None:
    """Why a command could not be done, where that is no fault of the code; None for anything unexpected.

    What this package raises on purpose is for the user, as are files, networks and memory; what a library raises on
    its own is not, as it speaks of its arguments and not of ours.
    """
    usage = getattr(error, "format_message", None)  # of click, which typer holds as its own since 0.26
    if callable(usage):
        context = getattr(error, "ctx", None)
        hint = "" if context is None else f" See {context.command_path} --help."
        return f"{usage()}{hint}"
    said = str(error)
    if isinstance(error, ImportError) and (why := why_not_imported(error)):
        return why
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said:
        return "The memory does not suffice: take a smaller model, shorter or fewer texts, or fewer tokens."
    if isinstance(error, RuntimeError) and "probability tensor contains" in said:
        return "The model's next-token probabilities are not finite: steer with less, a smaller --T or --relative-T."
    if isinstance(error, IndexError) and "out of range in self" in said:  # of torch's embedding
        return "A token lies beyond the model's vocabulary: the tokenizer in its folder belongs to another model."
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    if isinstance(error, OSError) or (isinstance(error, (ValueError, RuntimeError)) and raised_here(error)):
        return said or type(error).__name__
    return None


def raised_here(error: BaseException) -> bool:
    """Whether a `raise` statement of this package raised it: a built-in that fails in a line of ours is not meant."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
