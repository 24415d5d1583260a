"""Which folders a save writes to, and what it says of the others; each is left as it was."""

import os
from pathlib import Path

import pytest
from instances import fitted, planted

from odesteer_tl.data.storage import read_tree, write_tree
from odesteer_tl.save_load import load, save

TREE = {"a": 1}


def holdings(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"weights"),
        ("notes.txt", b"mine"),
        ("config.json", b'{"format": "x", "tree": 3}'),
        ("config.json", b'{"format": true, "tree": {}}'),
        ("config.json", b'{"format": 2, "tree": [1]}'),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff"),
        ("config.json", b""),
    ],
)
def test_a_folder_that_holds_something_else_is_left_alone(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    before = holdings(tmp_path)
    for write in (lambda folder: save(fitted("caa"), folder), planted().save, lambda folder: write_tree(folder, TREE)):
        with pytest.raises(ValueError, match=r"holds (other files|a config\.json of something else).* choose a"):
            write(tmp_path)
    assert holdings(tmp_path) == before
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)


def test_the_first_save_beside_another_that_is_at_work_is_no_stranger(tmp_path):
    names = ("tensors-0123456789abcdef.safetensors", ".0123456789abcdef.tmp", ".tmpiCXiSg")
    for name in names:
        (tmp_path / name).write_text("half")
    write_tree(tmp_path, TREE)
    assert read_tree(tmp_path) == TREE


def test_what_safetensors_leaves_of_a_killed_save_is_taken_away_later(tmp_path):
    write_tree(tmp_path, TREE)
    for name in (".tmpiCXiSg", ".tmp", ".tmp-notes"):
        (tmp_path / name).write_text("left")
        os.utime(tmp_path / name, (0, 0))
    write_tree(tmp_path, TREE)
    assert {file.name for file in tmp_path.glob(".*")} == {".tmp", ".tmp-notes"}


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("", "has no name"),
        ("caf\udce9", "is not UTF-8"),
        ("d/" * 1500, "lies within more than 100 folders"),
        ("linked", "a link to something else"),
        ("dangling", "is a file"),
    ],
)
def test_a_name_that_cannot_be_read_again_is_not_written(folder, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(fitted("caa"), "kept")
    Path("linked").mkdir()
    Path("linked/config.json").symlink_to("../kept/config.json")
    Path("dangling").symlink_to("absent")
    before = holdings(tmp_path)
    with pytest.raises(ValueError, match=words):
        save(fitted("caa"), folder)
    assert holdings(tmp_path) == before and len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_may_not_be_looked_at_is_refused_in_words(tmp_path, monkeypatch):
    """As for who has no rights: the tests may run as root, who has all."""
    save(fitted("caa"), tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "config.json")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PermissionError):
        save(fitted("caa"), tmp_path)
    with pytest.raises(ValueError, match=r"cannot be read: .*Permission denied"):
        load(tmp_path)
    monkeypatch.undo()
    for name in ("stat", "open"):
        monkeypatch.setattr(Path, name, refuse)
        with pytest.raises(ValueError, match=r"cannot be read: .*Permission denied"):
            load(tmp_path)
        monkeypatch.undo()


def test_a_name_that_no_disc_takes_is_refused_in_words():
    with pytest.raises(ValueError, match="cannot be read"):
        load("x" * 300)
    with pytest.raises(ValueError, match="is not UTF-8"):
        load("caf\udce9")
