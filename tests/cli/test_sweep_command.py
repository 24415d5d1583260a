"""`odesteer-tl sweep`: bounds, the judge and the chat template as they are typed."""

import json
from pathlib import Path

import pytest
from instances import without_shape_checks
from planted_texts import clean, model

import odesteer_tl as ot
from odesteer_tl.cli import main
from odesteer_tl.cli.exit_codes import DONE, REFUSED
from odesteer_tl.cli.sweep_command import _judge

LINE = ["sweep", "good.txt", "bad.txt", "--layers", "2", "--dry-run"]


@pytest.fixture(autouse=True)
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = ot.load_demo(model())
    sides = clean(12)
    monkeypatch.setattr(ot, "load_demo", lambda: demo)
    for name, side in zip(("good", "bad"), sides, strict=True):
        Path(f"{name}.txt").write_text("\n".join(side), encoding="utf-8")
    for name, side in zip(("good2", "bad2"), clean(12, seed=1), strict=True):
        Path(f"{name}.txt").write_text("\n".join(side), encoding="utf-8")
    Path("few.txt").write_text("one\ntwo", encoding="utf-8")
    with without_shape_checks():
        yield


def planned(capsys, *options):
    assert main([*LINE, *options, "--json"]) == DONE
    return json.loads(capsys.readouterr().out)


def test_bounds_take_the_place_of_the_defaults(capsys):
    assert planned(capsys)["guardrails"] == {"kl": [None, 1.0], "perplexity_ratio": [0.5, 2.0]}
    typed = ["kl<0.5", "length > 3", "length<=40", "tokens_per_second≥2", "informativeness>0.5", "unrelated_kl<1e-1"]
    plan = planned(capsys, *(part for one in typed for part in ("--guardrail", one)), "--unrelated", "few.txt")
    assert plan["guardrails"] == {
        "kl": [None, 0.5], "length": [3.0, 40.0], "tokens_per_second": [2.0, None], "informativeness": [0.5, None],
        "unrelated_kl": [None, 0.1],
    }  # fmt: skip
    assert {"tokens_per_second", "unrelated_kl", "informativeness"} <= set(plan["measures"])
    assert "tokens_per_second" not in planned(capsys)["measures"]  # a clock: asked for by name alone


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("texts", "Judge: words and pairs of words of the two files, right for"),
        ("bad.txt,good.txt", "Judge: words and pairs of words of two other files, right for"),
        ("embedded", "Judge: 7,425 positive and"),
    ],
)
def test_the_judge_is_chosen(judge, said, capsys):
    assert main([*LINE, "--judge", judge]) == DONE
    assert capsys.readouterr().out.splitlines()[-1].startswith(said)


def test_a_dry_run_looks_into_the_folder_and_writes_nothing(capsys):
    assert main([*LINE, "--out", "study"]) == DONE and not Path("study").exists()
    for name in ("other", "begun"):
        Path(name).mkdir()
    Path("other/notes.txt").write_text("mine", encoding="utf-8")
    Path("begun/protocol.json").write_text('{"seeds": [7]}', encoding="utf-8")
    capsys.readouterr()
    assert main([*LINE, "--out", "other"]) == REFUSED and "holds files" in capsys.readouterr().err
    assert main([*LINE, "--out", "begun"]) == REFUSED
    said = capsys.readouterr().err
    assert "ask for the same: seeds: [7] in the folder, [0, 1, 2] now; format: not given in the folder, 3 now; " in said
    assert "model: not given in the folder, given now; " in said
    assert sorted(path.name for path in Path("begun").iterdir()) == ["protocol.json"]


def test_a_judge_near_chance_is_told_of():
    texts = [f"word{number} and more" for number in range(10)]
    sides = texts, texts[::-1]
    assert _judge("texts", sides, sides)[1].endswith("which is near chance: give another --judge.")


def test_a_judge_that_is_upside_down_is_told_of(capsys):
    assert main([*LINE, "--judge", "bad2.txt,good2.txt"]) == DONE
    assert "of the undesired texts desired: are its files the other way round?" in capsys.readouterr().out
    assert main([*LINE, "--judge", "good2.txt,bad2.txt"]) == DONE
    assert "way round" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--guardrail", "kl<1", "--guardrail", "kl<2"], "bounds kl twice on one side"),
        (["--guardrail", "kl<1", "--guardrail", "kl>2"], "allows no kl"),
        (["--guardrail", "unrelated_kl<1"], "give --unrelated FILE"),
        (["--guardrail", "fun<1"], "'fun<1' bounds none of kl, kl_p95"),
        (["--guardrail", "kl=1"], "'kl=1' bounds none of kl, kl_p95"),
        (["--guardrail", "share>2"], "2 is not at least 0 and at most 1"),
        (["--judge", "few.txt,good.txt"], "--judge few.txt,good.txt needs at least 5 texts a side"),
        (["--judge", "few.txt,no.txt"], "no.txt is not a file"),
        (["--judge", "good.txt,good.txt"], "good.txt and good.txt hold the same texts"),
        (["--unrelated", "no.txt"], "no.txt is not a file"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(options, words, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    assert main([*LINE, *options]) == REFUSED
    assert words in capsys.readouterr().err


def test_chat_puts_the_prompts_into_the_template(capsys, monkeypatch):
    assert main([*LINE, "--chat"]) == REFUSED
    assert "no chat template: leave out --chat" in capsys.readouterr().err
    monkeypatch.setattr(model().tokenizer, "chat_template", "{{ messages[0].content }} so")
    assert main([*LINE, "--chat"]) == DONE
    assert "prompts in the chat template ×" in capsys.readouterr().out
