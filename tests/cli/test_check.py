"""`odesteer-tl check`: exit codes, the page, JSON, and what is refused before the work."""

import json
from pathlib import Path

import pytest
from instances import without_shape_checks
from planted_texts import clean, model

import odesteer_tl as ot
from odesteer_tl.cli import main
from odesteer_tl.cli.exit_codes import DONE, REFUSED, STOPPED

LINE = ["check", "good.txt", "bad.txt", "--layers", "2", "--position", "-5", "--method", "iti"]


@pytest.fixture(autouse=True)
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    high, low = clean()
    demo = ot.load_demo(model())
    monkeypatch.setattr(ot, "load_demo", lambda: demo)
    Path("good.txt").write_text("\n".join(high), encoding="utf-8")
    Path("bad.txt").write_text("\n".join(low), encoding="utf-8")
    Path("same.txt").write_text("\n".join(high[::-1]), encoding="utf-8")
    with without_shape_checks():
        yield


def test_clean_texts_end_with_0_and_a_page_and_a_stop_with_3(capsys):
    assert main([*LINE, "--html", "page.html"]) == DONE
    assert capsys.readouterr().out.startswith("pass: 40 desired and 40 undesired texts")
    assert "<title>Check of the data</title>" in Path("page.html").read_text(encoding="utf-8")
    assert main(["check", "good.txt", "same.txt", *LINE[3:], "--json"]) == STOPPED
    printed, said = capsys.readouterr()
    assert json.loads(printed)["verdict"] == "stop" and not said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "8:4"], "'8:4' names no layers"),
        (["--layers", "1:5:0"], "names no layers"),
        (["--layers", "x"], "names no layers"),
        (["--html", "no/page.html"], "no/page.html cannot be written: there is no folder"),
        (["--html", "."], ". is a folder: name a file in it"),
        (["--html", "bad.txt"], "--html bad.txt would replace the texts that it is about: name another file"),
        (["--html", "/proc/page.html"], "/proc/page.html cannot be written: choose a file or folder with write"),
        (["--position", "all"], "'all' reads several tokens"),
        (["--position", "middle"], "'middle' is not last, mean or an index such as -2."),
        (["--method", "hpr"], "pass --paired"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(options, words, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    assert main([*LINE, *options]) == REFUSED
    assert words in capsys.readouterr().err


def test_advice_is_in_the_words_of_the_command_line_and_blank_lines_are_told_of(capsys):
    high = Path("good.txt").read_text(encoding="utf-8").split("\n")
    Path("twice.txt").write_text("\n\n".join([*high, *high[:6]]), encoding="utf-8")
    Path("both.txt").write_text("\n".join([*high[:6], *clean()[1][6:]]), encoding="utf-8")
    assert main(["check", "twice.txt", "both.txt", *LINE[3:]]) == STOPPED
    out, err = capsys.readouterr()
    out = " ".join(out.split())
    assert "45 of 91 lines of twice.txt are blank and left out: rows count the others." in err
    assert "Keep one of each: drop the rows that --json lists." in out
    assert "(--json lists the rows); if they are meant to differ by a word, give them as pairs, --paired." in out
    assert "--position -5 is best (only one was tried)" in out and "check[" not in out and "=" not in out


def test_too_few_texts_are_refused(capsys):
    Path("few.txt").write_text("one\ntwo", encoding="utf-8")
    assert main(["check", "good.txt", "few.txt"]) == REFUSED
    assert "few.txt 2: fewer than 8 on a side" in capsys.readouterr().err
