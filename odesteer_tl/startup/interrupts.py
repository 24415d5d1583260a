"""Ctrl-C in a command while Python imports, and while it exits: the process ends without a traceback.

It ends by the signal, which a shell reports as 130. The first import of the package calls `end_quietly`, because the
imports take most of a second before a command can catch anything.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_command(argv: list[str], original: list[str]) -> bool:
    """Whether Python was started as `odesteer-tl` or as `python -m odesteer_tl`, by `sys.argv` and `sys.orig_argv`.
    Other programs that import the package keep their own handling of Ctrl-C."""
    if argv[:1] == ["-m"]:  # Python is still looking for the module to run
        arguments = original[original.index("-m") + 1 :] if "-m" in original else []
        return arguments[:1] == ["odesteer_tl"]
    return bool(argv) and Path(argv[0]).stem == "odesteer-tl"


def end_quietly() -> None:
    """Let Ctrl-C end a command at once. If it is ignored, as under `nohup`, it stays ignored."""
    from_command = is_command(getattr(sys, "argv", []), sys.orig_argv)
    if from_command and _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def raised_at_work() -> Iterator[None]:
    """Inside the block Ctrl-C raises KeyboardInterrupt, so that unfinished work is cleaned up."""
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


end_quietly()  # at import, before the imports that follow
