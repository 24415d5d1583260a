"""Text files with one text per line, from any editor: what they hold, or in words why it cannot be read."""

import codecs
import os
import stat
import sys
from pathlib import Path

MOST_BYTES = 2**28
"""More than that is no file of texts to fit on, and some devices never end."""

MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip
"""What other encodings begin with; UTF-32 first, whose little-endian mark begins with that of UTF-16."""


def lines_of(file: Path, aligned: bool = False) -> list[str]:
    """The lines that are not blank; `-` reads standard input. `aligned`: line i belongs to line i of other files, so
    that only the last may be blank; an answer keeps the space that it begins with, as it goes on where its query ends.

    Raises ValueError for what is no file, too long, empty or no UTF-8 text, and for a blank line where aligned.
    """
    name = "Standard input" if str(file) == "-" else str(file)
    text = _decoded(_bytes_of(file, name), name)
    # Line ends of Windows and of old Macs; no others, as str.splitlines would also split at U+2028.
    read = text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    if read == [""]:
        raise ValueError(f"{name} is empty; it should hold one text per line.")
    lines = [line.rstrip() if aligned else line.strip() for line in read]
    if aligned and "" in lines:
        raise ValueError(
            f"Line {lines.index('') + 1} of {name} is blank: line i of one file answers to line i of another, so "
            "remove that line from all of them."
        )
    return [line for line in lines if line]


def check_readable(*files: Path | None) -> None:
    """Raise ValueError where standard input is read twice, or a file is none."""
    given = [file for file in files if file is not None]
    if sum(str(file) in ("-", "/dev/stdin") for file in given) > 1:
        raise ValueError("Standard input can be read once: keep the other texts in a file.")
    for file in given:
        if str(file) != "-":
            _check_kind(file)
    pipes = [pipe for pipe in map(_pipe, given) if pipe is not None]
    if len(set(pipes)) < len(pipes):
        raise ValueError("A pipe can be read once, and one was given twice: keep the other texts in a file.")


def _pipe(file: Path) -> tuple[int, int] | None:
    """Which pipe a file is, under whatever name, such as /dev/fd/0; None for what can be read again."""
    try:
        found = os.fstat(0) if str(file) == "-" else os.stat(file)
    except OSError:  # standard input is closed
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None


def _check_kind(file: Path) -> None:
    """A pipe and standard input are read as files are; a folder or a disc is not."""
    try:
        kind = os.stat(file).st_mode
    except FileNotFoundError:
        raise ValueError(f"{file} is not a file; it should hold one text per line.") from None
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        what = "is a folder" if stat.S_ISDIR(kind) else "is not a file"
        raise ValueError(f"{file} {what}; it should be a text file with one text per line.")


def _bytes_of(file: Path, name: str) -> bytes:
    if str(file) == "-":
        read = getattr(sys.stdin, "buffer", None)
        if read is None:
            raise ValueError("Standard input is closed: name a file.")
        data = read.read(MOST_BYTES + 1)
    else:
        _check_kind(file)
        with file.open("rb") as stream:
            try:
                data = stream.read(MOST_BYTES + 1)
            except OSError as error:
                error.filename = name  # which only opening says
                raise
    if len(data) > MOST_BYTES:
        raise ValueError(f"{name} is larger than {MOST_BYTES // 2**20} MiB: fit on fewer texts.")
    return data


def _decoded(data: bytes, name: str) -> str:
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{name} is {encoding}, not UTF-8: {_conversion(encoding.lower(), name)}.")
    try:
        text = data.decode("utf-8-sig")  # without the mark that Windows sets first
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}): "
            f"{_conversion('latin1', name)}, with the encoding that it has."
        ) from None
    if "\0" in text:
        raise ValueError(f"{name} holds a NUL character at {text.index(chr(0))}: it is not a text file.")
    return text


def _conversion(encoding: str, name: str) -> str:
    return f"save it as UTF-8, or convert it, as in `iconv -f {encoding} -t utf-8 {name} > converted.txt`"
