"""Rows of a data set: of a local file (CSV, TSV, JSON, JSON lines, also gzipped), or from the Hugging Face Hub."""

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

from odesteer_tl.data.plain_trees import parsed

FORMATS = (".csv", ".tsv", ".json", ".jsonl")


def rows_of(source: str | Path, config: str | None = None, split: str = "validation") -> list[dict[str, Any]]:
    """The rows of a file, or of a Hub data set where no such file exists and the name has the form owner/name, or
    owner/name:split for another split.

    A JSON file holds a list of objects. Raises ValueError for a file of another format, without rows or damaged, for a
    name that is neither, and for a data set or split that the Hub does not have.
    """
    path = Path(source)
    if path.is_file():
        return _of_file(path)
    name = str(source)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.suffix:
        name, _, own = name.partition(":")
        return _of_hub(name, config, own or split)
    if path.is_dir():
        raise ValueError(f"{source} is a folder: give one of its files.")
    raise ValueError(f"{source} is no file, and no name of a data set on the Hub such as truthfulqa/truthful_qa.")


def _of_file(path: Path) -> list[dict[str, Any]]:
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in FORMATS:
        raise ValueError(f"{path} ends in none of {', '.join(FORMATS)}, also with .gz: convert it.")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
        if kind in (".csv", ".tsv"):
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ","))
        elif kind == ".json":
            rows = parsed(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as {kind[1:].upper()}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no list of rows with named fields.")
    return rows


def _of_hub(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"{name} is on the Hub: pip install datasets, or download its file and name that.") from error
    try:
        return [dict(row) for row in load_dataset(name, config, split=split)]
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"The split {split!r} of {name} cannot be read ({name}:SPLIT is another): {error}") from error


def field_of(row: dict[str, Any], name: str, source: Any) -> str:
    """A text of a row. Raises ValueError where it is missing or blank."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{source}: a row has no text in {name!r}; its fields are {', '.join(map(str, row))}.")
    return value
