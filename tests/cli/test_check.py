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
        (["--position", "all"], "--position all reads several tokens"),
        (["--method", "hpr"], "pass --paired"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(options, words, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    assert main([*LINE, *options]) == REFUSED
    assert words in capsys.readouterr().err


def test_too_few_texts_are_refused(capsys):
    Path("few.txt").write_text("one\ntwo", encoding="utf-8")
    assert main(["check", "good.txt", "few.txt"]) == REFUSED
    assert "few.txt 2: fewer than 8 on a side" in capsys.readouterr().err
