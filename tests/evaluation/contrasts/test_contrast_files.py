"""A contrast in a folder: whole or not at all, lines that `fit` reads, labels of people, and what is refused."""

import hashlib
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from instances import without_shape_checks

import odesteer_tl as ot
from odesteer_tl.evaluation.contrasts.everyday_questions import QUESTIONS


def made(count=12, **options):
    def write(chats):
        digests = [hashlib.sha256(str(chat).encode()).hexdigest() for chat in chats]
        return [f"{one[:20]} is\n{one[20:40]} \0 ünd 🙂 {one[40:]}" for one in digests]

    own = {"ambiguous": ["neither one nor the other"], "held_back": 0.25}
    return ot.contrastive(write, "axis", "is one", "is other", questions=QUESTIONS[:count], **own | options)


@pytest.mark.parametrize("answers", [True, False])
def test_what_was_saved_is_loaded_and_lines_are_the_texts(tmp_path, answers):
    found = made(answers=answers)
    found.save(tmp_path / "new" / "kept")
    folder = tmp_path / "new" / "kept"
    assert ot.Contrast.load(folder) == found and ot.Contrast.load(str(folder)).texts == found.texts
    names = {"contrast.json", "desired.txt", "undesired.txt", "prompts.txt", "to_label.jsonl"}
    assert {file.name for file in folder.iterdir()} == names | ({"questions.txt"} if answers else set())
    assert [file.name for file in folder.parent.iterdir()] == ["kept"]
    from odesteer_tl.cli.text_files import lines_of

    assert lines_of(folder / "desired.txt", aligned=True) == found.desired
    assert lines_of(folder / "undesired.txt", aligned=True) == found.undesired
    assert lines_of(folder / "prompts.txt") == list(found.prompts)
    if answers:
        assert lines_of(folder / "questions.txt", aligned=True) == found.questions
    tree = json.loads((folder / "contrast.json").read_text(encoding="utf-8"))
    assert tree["axis"] == {
        "name": "axis", "desired": "is one", "undesired": "is other", "ambiguous": ["neither one nor the other"],
    }  # fmt: skip
    assert stat.S_IMODE(folder.stat().st_mode) & 0o700 == 0o700


def test_records_to_label_do_not_tell_the_side_and_labels_decide(tmp_path):
    found = made()
    found.save(tmp_path / "kept")
    file = tmp_path / "kept" / "to_label.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert records == found.to_label() and len({one["id"] for one in records}) == 2 * len(found) == 18
    assert all(set(one) == {"id", "question", "text", "label"} and one["label"] is None for one in records)
    sides = [one["text"] in {pair.desired for pair in found.pairs} for one in records]
    assert sides != sorted(sides) and sides != sorted(sides)[::-1]
    assert found.labelled(file) == found
    truth = dict(zip([one["id"] for one in records], sides, strict=True))
    right = {number: "desired" if side else "undesired" for number, side in truth.items()}
    assert found.labelled(right) == found
    first = found.pairs[0]
    for wrong in ("undesired", "ambiguous"):
        (number,) = [one["id"] for one in records if one["text"] == first.desired]
        lines = [json.dumps(one | {"label": wrong if one["id"] == number else right[one["id"]]}) for one in records]
        file.write_text("\n".join(lines), encoding="utf-8")
        left = found.labelled(file)
        assert left.pairs == found.pairs[1:] and left.dropped[-1] == replace(first, why="labelled otherwise")
    with pytest.raises(ValueError, match="labels are by the ids"):
        found.labelled({"none": "desired"})
    with pytest.raises(ValueError, match="labels are by the ids"):
        found.labelled({records[0]["id"]: "good"})
    file.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no labels"):
        found.labelled(file)


def test_a_folder_with_files_is_refused_and_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    found = made()
    found.save(tmp_path / "kept")
    with pytest.raises(ValueError, match="holds files: choose a new folder"):
        found.save(tmp_path / "kept")
    (tmp_path / "file").write_text("a")
    with pytest.raises(ValueError, match="is a file"):
        found.save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    found.save(tmp_path / "empty")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        found.save(tmp_path / "third")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "file", "kept"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"pairs": None}, {"pairs": [{}]}, {"axis": {"name": "a"}}, {"prompts": [1]}, {"answers": "yes"},
        {"more": 1}, {"writer": 3}, {"axis": {"name": "a", "desired": "b", "undesired": "c", "ambiguous": [1]}},
    ],
)  # fmt: skip
def test_another_tree_is_refused(tmp_path, change):
    made().save(tmp_path / "kept")
    file = tmp_path / "kept" / "contrast.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(tree | change), encoding="utf-8")
    with without_shape_checks(), pytest.raises(ValueError, match=r"contrast"):
        ot.Contrast.load(tmp_path / "kept")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no contrast that can be read"):
        ot.Contrast.load(tmp_path)
    (tmp_path / "contrast.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="holds no contrast that can be read"):
        ot.Contrast.load(tmp_path)
