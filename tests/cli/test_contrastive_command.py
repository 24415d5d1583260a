"""`odesteer-tl contrastive`: a folder that `check` and `fit` read, what is printed, what is refused before the work."""

import json
from pathlib import Path

import pytest
from instances import without_shape_checks
from planted_texts import model

import odesteer_tl as ot
from odesteer_tl.cli import main
from odesteer_tl.cli.exit_codes import DONE, REFUSED, STOPPED
from odesteer_tl.cli.text_files import lines_of

LINE = ["contrastive", "out", "--axis", "verdict", "--desired", "praises a film", "--undesired", "condemns a film"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = ot.load_demo(model())
    monkeypatch.setattr(ot, "load_demo", lambda: demo)
    Path("questions.txt").write_text("\n".join(pair["query"] for pair in demo.pairs[3:17]), encoding="utf-8")
    rows = [f"A film?\t{pair['desired'].strip()}\t{pair['undesired'].strip()}" for pair in demo.pairs[:3]]
    Path("examples.txt").write_text("\n".join(rows), encoding="utf-8")
    with without_shape_checks():
        yield


def test_the_folder_is_checked_and_feeds_the_other_commands(capsys):
    given = ["--questions", "questions.txt", "--examples", "examples.txt", "--forms", "few-shot", "--layers", "2"]
    code = main([*LINE, *given, "--max-new-tokens", "12", "--ambiguous", "A film that is only named."])
    printed = capsys.readouterr().out
    found = ot.Contrast.load("out")
    assert code in (DONE, STOPPED) and printed.startswith(f"verdict: {len(found)} pairs, written by embedded")
    assert f"{len(found)} desired and {len(found)} undesired texts" in printed  # of the check
    assert printed.rstrip().endswith("out/desired.txt out/undesired.txt METHOD --queries out/questions.txt`.")
    assert found.axis.ambiguous == ("A film that is only named.",)
    sides = [lines_of(Path(f"out/{name}.txt"), aligned=True) for name in ("desired", "undesired", "questions")]
    assert sides == [found.desired, found.undesired, found.questions]
    files = ["out/desired.txt", "out/undesired.txt"]
    assert main(["fit", *files, "method", "--layer", "2", "--method", "caa", "--queries", "out/questions.txt"]) == DONE
    capsys.readouterr()
    assert main([*LINE, *given]) == REFUSED  # the folder is full
    assert "out holds files: choose a new folder" in capsys.readouterr().err


def test_prompts_alone_are_quick_and_json_is_json(capsys):
    assert main([*LINE, "--no-answers", "--no-check", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out) == {"folder": "out", "pairs": 51, "dropped": 0, "check": None}
    assert not Path("out/questions.txt").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--forms", "few-shot"], "--forms few-shot shows examples: give --examples FILE"),
        (["--forms", "other"], "'other' is not one of system, persona, few-shot"),
        (["--questions", "questions.txt", "--write-questions", "9"], "Give either --questions or --write-questions"),
        (["--examples", "questions.txt"], "Example 1 of questions.txt has 1 parts"),
        (["--questions", "no.txt"], "no.txt is not a file"),
        (["--write-questions", "1"], "1 is not from 2"),
        (["--desired", " "], "it is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(options, words, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    assert main([*LINE, *options]) == REFUSED
    assert words in capsys.readouterr().err and not Path("out").exists()


def test_sides_that_cannot_be_told_apart_are_refused(capsys):
    assert main([*LINE[:-1], "praises a film", "--no-check"]) == REFUSED
    assert "say what tells the sides apart" in capsys.readouterr().err


def test_one_question_is_refused_in_the_words_of_the_command(capsys):
    Path("one.txt").write_text("Was it good?", encoding="utf-8")
    assert main([*LINE, "--questions", "one.txt"]) == REFUSED
    assert "at least two different questions; got 1: give more in --questions FILE" in capsys.readouterr().err
