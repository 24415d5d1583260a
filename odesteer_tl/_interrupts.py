"""Ctrl-C beside the work of a command line: while Python still imports, and when it ends, the process just ends.

It ends by the signal, which a shell reports as 130. The first import of the package calls `end_quietly`, as most of a
second goes by in imports before any code of a command can catch anything.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_command(argv: list[str], original: list[str]) -> bool:
    """Whether Python was started as `odesteer-tl` or as `python -m odesteer_tl`, from `sys.argv` and `sys.orig_argv`:
    another program that imports the package keeps its own handling of Ctrl-C."""
    if argv[:1] == ["-m"]:  # while Python looks for the module that it is to run
        after = original[original.index("-m") + 1 :] if "-m" in original else []
        return after[:1] == ["odesteer_tl"]
    return bool(argv) and Path(argv[0]).stem == "odesteer-tl"


def end_quietly() -> None:
    """Let Ctrl-C end a command; one that is ignored, as behind `nohup`, stays ignored."""
    asked = is_command(getattr(sys, "argv", []), sys.orig_argv)
    if asked and _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def raised_at_work() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, so that what is half done is undone."""
    quiet = _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if quiet:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


end_quietly()  # here, as it has to come before the imports that follow
