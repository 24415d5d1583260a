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
    """Make standard output and error writable with any character, also if the caller closed them."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without ‖ shows \\u2016


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
    """Inside the block warnings of this package are printed in one line each, and those of libraries are hidden."""

    def show(message: Any, category: Any, filename: str, *_: Any) -> None:
        if Path(filename).is_relative_to(PACKAGE):
            print(f"Warning: {on_one_line(in_cli_words(str(message)))}", file=sys.stderr)

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


def forget_output() -> None:
    """Redirect standard output to nowhere: otherwise Python would flush its buffer at exit, and fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # it is not a file, as in a test
        pass
