"""A library that cannot be imported: a command says in a sentence which one, and what to type.

Most of them are imported with the package, before any code of a command runs; the rest where they are needed.
"""

import os
import sys
import traceback
from types import TracebackType

from odesteer_tl.startup.interrupts import is_command

_OWN = "odesteer_tl"
_REFUSED = 2  # `cli.exit_codes.REFUSED`


def why_not_imported(error: BaseException) -> str | None:
    """What to say of an error that the import of another package raised; None of any other error."""
    if not isinstance(error, Exception):  # Ctrl-C
        return None
    if isinstance(error, ModuleNotFoundError) and error.name:
        library = error.name.partition(".")[0]
    else:
        library = _importing(error.__traceback__)
    if library in (None, _OWN):
        return None
    from importlib.metadata import packages_distributions  # here, as it takes a while

    said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    named = packages_distributions().get(library, [library])[0]
    return f"{library} cannot be imported ({said}). Install it anew: pip install --force-reinstall {named}"


def _importing(trace: TracebackType | None) -> str | None:
    """The first package, but for this one, of which a module was being run."""
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and package not in (_OWN, "__main__"):
            return package
    return None


def shows_tracebacks() -> bool:
    """Whether ODESTEER_TL_DEBUG asks for the traceback of every error."""
    return os.environ.get("ODESTEER_TL_DEBUG", "") not in ("", "0")


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python shows an error that nothing has caught; but failed imports end a command as any refusal does."""
    why = why_not_imported(error)
    if why is None or shows_tracebacks():
        traceback.print_exception(kind, error, trace)
    if why is not None:
        print(f"Error: {why[:1000]}", file=sys.stderr)
        sys.exit(_REFUSED)


if is_command(getattr(sys, "argv", []), sys.orig_argv):
    sys.excepthook = _say
