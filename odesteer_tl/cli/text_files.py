"""Reads text files with one text per line, from any editor, or raises an error that says why they cannot be read."""

import codecs
import os
import stat
import sys
import warnings
from pathlib import Path

MAX_BYTES = 2**28
"""The largest file that is read; some devices never end."""

Sides = tuple[tuple[list[str], list[str]], list[str] | None]
"""The texts of both sides, and the queries."""

PROMPTS, FEWEST_WORDS, MOST_WORDS, MOST_CHARACTERS = 12, 3, 8, 80
"""Of how many texts a side the beginnings are taken as prompts where none are given, and how much of each."""

MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip
"""The byte order marks of other encodings. UTF-32 is first: its little-endian mark begins with that of UTF-16."""


def lines_of(file: Path, aligned: bool = False) -> list[str]:
    """The lines that are not blank; `-` reads standard input. `aligned`: line i belongs to line i of other files, so
    only the last lines may be blank; an answer keeps its leading space, because it directly follows its query.

    Raises ValueError for a path that is no file, for a file that is too long, empty or not UTF-8, and, if aligned, for
    a blank line.
    """
    name = "Standard input" if str(file) == "-" else str(file)
    text = _decoded(_bytes_of(file, name), name)
    # Line ends of Windows and of old Macs. str.splitlines would also split at others, such as U+2028.
    read = text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    if read == [""]:
        raise ValueError(f"{name} is empty; it should hold one text per line.")
    lines = [line.rstrip() if aligned else line.strip() for line in read]
    if aligned and "" in lines:
        raise ValueError(
            f"Line {lines.index('') + 1} of {name} is blank: line i of one file belongs to line i of the others, so "
            "remove that line from all of them."
        )
    return [line for line in lines if line]


def tell_blank_lines(file: Path) -> None:
    """Warn of blank lines, which are left out: the number of a row is then not that of its line."""
    if str(file) == "-" or not file.is_file():
        return
    lines = file.read_bytes().rstrip().splitlines()
    if blank := sum(not line.strip() for line in lines):
        message = f"{blank} of {len(lines)} lines of {file} are blank and left out: rows count the others."
        warnings.warn(message, stacklevel=1)  # the command line shows the warnings of this package's files


def pairs_of(desired: Path, undesired: Path, queries: Path | None, paired: bool) -> Sides:
    """The lines of both sides, and of the queries if there are any; aligned if line i of all belongs together."""
    aligned = paired or queries is not None
    query_lines = None if queries is None else lines_of(queries, aligned)
    return (lines_of(desired, aligned), lines_of(undesired, aligned)), query_lines


def check_differ(desired: Path, undesired: Path, sides: tuple[list[str], list[str]]) -> None:
    """Raise ValueError where both files hold the same texts."""
    if sides[0] == sides[1]:
        raise ValueError(f"{desired} and {undesired} hold the same texts, which nothing tells apart.")


def beginnings(*sides: list[str]) -> list[str]:
    """The first words of some texts of every side."""
    words = [text.split() for side in sides for text in side[:PROMPTS]]
    found = [" ".join(text[: min(max(len(text) // 4, FEWEST_WORDS), MOST_WORDS)]) for text in words]
    return [beginning[:MOST_CHARACTERS] for beginning in found]  # some languages have no spaces


def check_readable(*files: Path | None) -> None:
    """Raise ValueError if standard input or a pipe is given twice, or if a path is no file."""
    files_given = [file for file in files if file is not None]
    if sum(str(file) in ("-", "/dev/stdin") for file in files_given) > 1:
        raise ValueError("Standard input can be read once: put the other texts into a file.")
    for file in files_given:
        if str(file) != "-":
            _check_kind(file)
    pipes = [pipe for pipe in map(_pipe, files_given) if pipe is not None]
    if len(set(pipes)) < len(pipes):
        raise ValueError("A pipe can be read once, and one was given twice: put the other texts into a file.")


def _pipe(file: Path) -> tuple[int, int] | None:
    """The identity of a pipe, under any name, such as /dev/fd/0; None for a file that can be read again."""
    try:
        status = os.fstat(0) if str(file) == "-" else os.stat(file)
    except OSError:  # standard input is closed
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISFIFO(status.st_mode) else None


def _check_kind(file: Path) -> None:
    """Raise ValueError for a path that does not exist, and for a folder or a disc. Files, pipes and terminals can be
    read."""
    try:
        kind = os.stat(file).st_mode
    except FileNotFoundError:
        raise ValueError(f"{file} is not a file; it should hold one text per line.") from None
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        what = "is a folder" if stat.S_ISDIR(kind) else "is not a file"
        raise ValueError(f"{file} {what}; it should be a text file with one text per line.")


def _bytes_of(file: Path, name: str) -> bytes:
    if str(file) == "-":
        buffer = getattr(sys.stdin, "buffer", None)
        if buffer is None:
            raise ValueError("Standard input is closed: name a file.")
        data = buffer.read(MAX_BYTES + 1)
    else:
        _check_kind(file)
        with file.open("rb") as stream:
            try:
                data = stream.read(MAX_BYTES + 1)
            except OSError as error:
                error.filename = name  # an error in reading does not have it
                raise
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES // 2**20} MiB: fit on fewer texts.")
    return data


def _decoded(data: bytes, name: str) -> str:
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{name} is {encoding}, not UTF-8: {_conversion(encoding.lower(), name)}.")
    try:
        text = data.decode("utf-8-sig")  # drops the byte order mark that Windows writes
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}): "
            f"{_conversion('latin1', name)}, with its actual encoding in place of latin1."
        ) from None
    if "\0" in text:
        raise ValueError(f"{name} holds a NUL character at {text.index(chr(0))}: it is not a text file.")
    return text


def _conversion(encoding: str, name: str) -> str:
    return f"save it as UTF-8, or convert it, as in `iconv -f {encoding} -t utf-8 {name} > converted.txt`"
