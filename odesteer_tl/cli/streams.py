"""Standard output is the command's own, standard error is for people, and libraries are quiet in both."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from odesteer_tl.cli.messages import in_own_words, on_one_line

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("transformers", "huggingface_hub", "nnsight", "transformer_lens", "matplotlib")
"""Whose warnings are for who writes code."""


def prepare_streams() -> None:
    """Streams that can be written whatever the terminal knows, and that are there where they were closed. Standard
    error, which is for people, stops no work where it cannot be written: the exit code says the rest."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no ‖ shows \\u2016
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
def own_output() -> Iterator[Callable[[str], None]]:
    """Yields `say`, which alone writes to standard output: whatever else is printed goes to standard error.

    `say` raises OSError, with standard output as its file, where nobody reads or the disc is full.
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
    """Warnings of this package as one line each, and none of the libraries'."""

    def show(message: Any, category: Any, filename: str, *_: Any) -> None:
        if Path(filename).is_relative_to(PACKAGE):
            print(f"Warning: {on_one_line(in_own_words(str(message)))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")  # also where PYTHONWARNINGS would make errors of them
        warnings.showwarning = show
        yield


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.level for logger in loggers]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is first imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def forget(stream: Any) -> None:
    """Python would write what is left in its buffer when it ends, and fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (AttributeError, OSError, ValueError):  # no file behind it, as in a test
        pass
