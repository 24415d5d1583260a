"""The files of a saved contrast: JSON and plain lines, written as a whole new folder or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

FORMAT = 1
NAME, LABELS = "contrast.json", "to_label.jsonl"
MOST_BYTES = 2**28


def check_new(folder: Path) -> None:
    """Raise ValueError for a file, and for a folder that holds anything: labels of people may be among it."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise ValueError(f"{folder} holds files: choose a new folder, so that no labels are lost.")
    elif os.path.lexists(folder):
        raise ValueError(f"{folder} is a file; a contrast is kept in a folder.")


def write(folder: Path, contrast: Any, lines: Mapping[str, Sequence[str]], records: Sequence[Any]) -> None:
    """Write the folder beside its place, and move it there."""
    check_new(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name[:20]}-"))
    try:
        texts = {name: "".join(f"{line}\n" for line in of) for name, of in lines.items()}
        texts[LABELS] = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        texts[NAME] = json.dumps({"format": FORMAT} | asdict(contrast), indent=1, ensure_ascii=False) + "\n"
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8", newline="\n")
        made.chmod(0o777 & ~_umask())
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)  # it is there only if something failed


def read(folder: Path) -> dict[str, Any]:
    """The tree of a saved contrast, not checked yet. Raises ValueError where there is none of this format."""
    file = folder / NAME
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"{file} is larger than {MOST_BYTES // 2**20} MiB.")
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder} holds no contrast that can be read: {error}.") from error
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise ValueError(f"{file} is no contrast of format {FORMAT}.")
    return tree


def chat_in(messages: Any) -> list[dict[str, str]]:
    """A chat of a saved contrast. Raises ValueError where it is none."""
    if not all(set(one) == {"role", "content"} and all(isinstance(v, str) for v in one.values()) for one in messages):
        raise ValueError("a chat is a list of messages with a role and a content")
    return list(messages)


def check_texts(contrast: Any) -> None:
    """Raise ValueError where something that was read is not of its kind."""
    of_pairs = [
        text
        for pair in (*contrast.pairs, *contrast.dropped)
        for text in (pair.question, pair.desired, pair.undesired, pair.form, pair.why or "")
    ]
    texts = [*of_pairs, *contrast.prompts, contrast.writer, contrast.axis.name, *contrast.axis.sides]
    if not all(isinstance(text, str) for text in (*texts, *contrast.axis.ambiguous)):
        raise ValueError("a text is no text")
    if not all(isinstance(flag, bool) for flag in (contrast.answers, contrast.chat)):
        raise ValueError("answers and chat are true or false")
    if any(len(pair.asked) != 2 for pair in contrast.pairs):
        raise ValueError("a pair was asked twice")


def labels_in(file: Path) -> dict[str, Any]:
    """The labels by id of a filled-in file. Raises ValueError for a line that is no record."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return {str(line["id"]): line["label"] for line in lines}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f'{file} holds no labels, a line of JSON with "id" and "label" for each text: {type(error).__name__}: '
            f"{error}."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
