"""Standard output is for the command's result alone, standard error for messages; libraries print to neither."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from odesteer_tl.cli.messages import in_cli_words, on_one_line

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("transformers", "huggingface_hub", "nnsight", "transformer_lens", "matplotlib")
"""Libraries whose warnings are for programmers, and are not shown."""


def prepare_streams() -> None:
    """Make standard output and error writable with any character, also if the caller closed them. Errors of
    writing to standard error are ignored: it is for people, and the exit code says the rest."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without ‖ shows \\u2016
    if not isinstance(sys.stderr, _Unheard):
        stderr: Any = _Unheard(sys.stderr)
        sys.stderr = stderr


class _Unheard:
    """A stream whose words are lost where they cannot be written, from the first that cannot."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            forget(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            forget(self._stream)


@contextmanager
def command_output() -> Iterator[Callable[[str], None]]:
    """Yields `say`, the only function that writes to standard output; everything else printed goes to standard error.

    `say` raises OSError, with standard output as its file, if the pipe is closed or the disc is full.
    """
    out = sys.stdout

    def say(text: str) -> None:
        try:
            print(text, file=out, flush=True)
        except OSError as error:
            error.filename = "standard output"
            raise

    with redirect_stdout(sys.stderr), _quiet_libraries():
        yield say


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Inside the block warnings of this package are printed in one line each, the same one once, and those of libraries
    are hidden."""
    told = set()

    def show(message: Any, category: Any, filename: str, *_: Any) -> None:
        line = f"Warning: {on_one_line(in_cli_words(str(message)))}"
        if Path(filename).is_relative_to(PACKAGE) and line not in told:
            told.add(line)
            print(line, file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")  # also if PYTHONWARNINGS turns warnings into errors
        warnings.showwarning = show
        yield


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # transformers reads it at its first import
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def forget(stream: Any) -> None:
    """Redirect a standard stream to nowhere: otherwise Python would flush its buffer at exit, and fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (AttributeError, OSError, ValueError):  # it is not a file, as in a test
        pass
