"""`odesteer-tl bench`: a run from files, what is printed, and what is refused before the work."""

import json
from pathlib import Path

import pytest
import torch
from instances import planted, without_shape_checks

import odesteer_tl as ot
from odesteer_tl import benchmarks
from odesteer_tl.benchmarks import endpoint_judge, named
from odesteer_tl.cli import main
from odesteer_tl.cli.exit_codes import DONE, REFUSED

DEMO = ot.load_demo()
LINE = ["bench", "truthfulqa-mc", "qa.csv", "--model", "embedded", "--layer", "2", "--kl", "0.1", "--prompts", "1",
        "--max-new-tokens", "2", "--no-bos", "--seeds", "1"]  # fmt: skip


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ot, "load_demo", lambda: DEMO)
    rows = "".join(f'A,B,Is {i} a number?,"Yes, {i} is","Yes, {i} is; Yes","No; Never",x\n' for i in range(4))
    Path("qa.csv").write_text(f"Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n{rows}")
    with without_shape_checks():
        yield


def test_a_table_and_json_and_the_folder(capsys):
    assert main([*LINE, "--rows", "random,caa,mimic", "--out", "mc"]) == DONE
    printed, said = capsys.readouterr()
    assert printed == Path("mc/table.md").read_text() and "| MC2 − random |" in printed
    assert [line.split(" | ")[0] for line in printed.split("\n")[2:6]] == [
        "| no steering",
        "| random direction",
        "| CAA",
        "| MiMiC",
    ]
    assert "random direction, KL 0.1, fold 0, seed 0: cell 2 of 8" in said
    assert main([*LINE, "--rows", "random,caa,mimic", "--out", "mc", "--json"]) == DONE
    printed, said = capsys.readouterr()
    assert json.loads(printed) == json.loads(Path("mc/result.json").read_text()) and "cell" not in said
    assert main([*LINE, "--rows", "caa", "--out", "mc"]) == REFUSED
    assert "another protocol" in capsys.readouterr().err
    assert main([*LINE, "--prompts", "5", "--rows", "prompt"]) == DONE
    assert "continuations of 2 prompts" in capsys.readouterr().out  # a side has no more


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--rows", "caa,none"], "'none' is not one of prompt, random"),
        (["--judge", "reward:x"], "truthfulqa-mc scores given answers: leave out --judge"),
        (["--samples", "3"], "leave out --judge, --samples and --sample-tokens"),
        (["--info-judge", "lm:Helpful:x"], "--info-judge is for truthfulqa: leave it out with truthfulqa-mc"),
        (["--limit", "3"], "3 is not from 4"),
        (["--layers", "1,3"], "Give a layer, or layers among which it is chosen, and not both"),
        (["--rows", "prompt", "--T", "1"], "T is given for these rows; the rows that have a T are none"),
        (["--position", "all"], "'all' reads several tokens of a text; last, mean and -2 read one"),
    ],
)
def test_what_cannot_be_is_refused(change, words, capsys):
    assert main([*LINE, *change]) == REFUSED
    assert words in capsys.readouterr().err


def test_free_answers_with_two_judges_and_what_has_no_use_for_samples(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(
        named,
        "judge_named",
        lambda name, **where: given.append((name, where["dtype"])) or benchmarks.KeywordJudge(("a", "i")),
    )
    free = ["bench", "truthfulqa", *LINE[2:], "--rows", "CAA", "--samples", "1", "--sample-tokens", "3"]
    assert main([*free, "--judge", "lm:True:x", "--info-judge", "lm:Helpful:y", "--json"]) == DONE
    assert given == [("lm:True:x", torch.float32), ("lm:Helpful:y", torch.float32)]
    found = json.loads(capsys.readouterr().out)
    assert set(found["rows"][1]["scores"]) == {"true_info", "true", "info", "closer"}
    assert main([*free, "--info-judge", "lm:Helpful:y"]) == REFUSED
    assert "--info-judge needs --judge" in capsys.readouterr().err
    assert main([*free, "--judge", "reward:x"]) == REFUSED
    assert "a reward model does not: take another judge" in capsys.readouterr().err
    choice = {"question": "Is it?\n (A) Yes\n (B) No", "answer_matching_behavior": "(A)"}
    Path("ab.json").write_text(json.dumps([choice | {"answer_not_matching_behavior": "(B)"}] * 4))
    assert main(["bench", "ab", "ab.json", *LINE[3:], "--samples", "2"]) == REFUSED
    assert "ab samples texts for a judge: give --judge, or leave out --samples" in capsys.readouterr().err


def test_the_short_names_are_of_these_methods():
    rows, acts = named.rows_named([*named.SHORT], ("Be kind.",)), planted()
    assert list(rows) == [*named.SHORT.values()] and rows["prompt only"].fit(acts, 0).prefixes == ("Be kind.",)
    for name in rows:
        if name.startswith("ODESteer"):
            options = {"features": ot.Linear()} if "linear" in name else {}
            options |= {"until": "desired"} if "until" in name else {}
            kind = ot.StepODESteer if "one step" in name else ot.ODESteer
            own, made = kind.fit(acts, **options), rows[name].fit(acts, 0)
            assert type(made) is kind and torch.equal(made.steer(acts.desired, 9.0), own.steer(acts.desired, 9.0)), name
    assert isinstance(rows["CAA"].fit(acts, 0), ot.CAA) and isinstance(rows["ITI"].fit(acts, 0), ot.ITI)
    plain, mixed = (ot.ODESteer.fit(acts), rows["shuffled labels"].fit(acts, 0))
    assert type(mixed) is ot.ODESteer and not torch.equal(
        mixed.steer(acts.desired, 1.0), plain.steer(acts.desired, 1.0)
    )
    ones = rows["random direction"].fit(acts, 0)
    assert all(isinstance(one, ot.RandomDirection) for one in ones) and torch.equal(
        ones[0].direction, -ones[1].direction
    )
    assert [name for name, row in rows.items() if row.by_chance] == ["random direction", "shuffled labels"]
    assert list(named.rows_named(None, ("Be kind.",))) == list(rows)[:9]
    guide = Path(__file__).parents[2].joinpath("docs/howto/benchmarks.md").read_text()
    assert all(f"`{name}`" in guide for name in named.SHORT)


def test_what_a_paid_judge_has_cost_is_said(monkeypatch, capsys):
    class Paid(benchmarks.KeywordJudge):
        usage = endpoint_judge.Usage(requests=3, repeated=1, prompt_tokens=20, completion_tokens=4, cost=0.5)

    monkeypatch.setattr(named, "judge_named", lambda name, **where: Paid(("a", "i")))
    free = ["bench", "truthfulqa", *LINE[2:], "--rows", "caa", "--samples", "1", "--sample-tokens", "3"]
    assert main([*free, "--judge", "lm:True:x", "--json"]) == DONE
    said = capsys.readouterr()
    words = "--judge: 3 requests, 1 of them repeated; 20 prompt tokens and 4 completion tokens; cost 0.5."
    assert words in said.err and json.loads(said.out)


def test_names_and_judges(capsys):
    assert main(["bench", "truth", "qa.csv", "--model", "embedded"]) == REFUSED
    assert "'truth' is not one of truthfulqa-mc, truthfulqa, ab, ab-coordinate-other-ais" in capsys.readouterr().err
    assert main(["bench", "truthfulqa-mc", "no.csv", "--model", "embedded"]) == REFUSED
    assert "no.csv is no file, and no name of a data set" in capsys.readouterr().err
    Path("judge.json").write_text(json.dumps({"url": "http://localhost:1/v1", "model": "m", "template": "{text}?"}))
    assert named.judge_named("endpoint:judge.json").prompt("a") == "a?"
    for number, wrong in enumerate([
        {"scale": [1]}, {"prices": [1]}, {"retries": -1}, {"prompt": "x"}, {"usage": {}}, {"requests_per_minute": 0},
        {"url": "http://a:x"},
    ]):  # fmt: skip
        own = {"url": "http://localhost/v1", "model": "m", "template": "{text}?"} | wrong
        Path(f"{number}.json").write_text(json.dumps(own))
        with pytest.raises(ValueError, match=rf"{number}\.json does not describe an endpoint: "):
            named.judge_named(f"endpoint:{number}.json")
    for wrong in ("reward:./none", "reward-chat:/none", "classifier:x:~/none", "lm:True:./none"):
        with pytest.raises(ValueError, match="none is no folder: give one that holds the judge"):
            named.judge_named(wrong)
    for name, source, words in (("ab-refusal", "qa.csv", "is no folder: give CAA"), ("ab", ".", ". is a folder: give")):
        assert main(["bench", name, source, "--model", "embedded"]) == REFUSED
        assert words in capsys.readouterr().err
    for wrong in ("endpoint:none.json", "endpoint:qa.csv", "reward", "classifier:x", "lm:x", "words"):
        with pytest.raises(ValueError, match=r"does not describe an endpoint|is none of reward:NAME"):
            named.judge_named(wrong)
    assert {name.removesuffix("-text") for name in named.NAMED if name.startswith("ab-")} == {
        f"ab-{one}" for one in ("refusal", "sycophancy", "hallucination", "myopic-reward", "survival-instinct",
                                "coordinate-other-ais", "corrigible-neutral-HHH")
    }  # fmt: skip
    assert list(named.rows_named(["nonlinear10", "hpr"], ())) == ["ODESteer, ten steps", "HPR"]
    stopping = named.rows_named(["linear-until", "nonlinear-until"], ())
    assert list(stopping) == ["ODESteer linear, until", "ODESteer, until"]
    for row, features in zip(stopping.values(), (ot.Linear(), None), strict=True):
        acts = planted()
        assert row.fit(acts, 0).until == ot.ODESteer.fit(acts, features=features, until="desired").until
    assert not set(stopping) & set(named.rows_named(None, ("Be kind.",)))


def test_no_help_turns_words_between_colons_into_a_picture(capsys):
    assert main(["bench", "--help"]) == DONE
    assert "classifier:CLASS:NAME" in "".join(capsys.readouterr().out.replace("│", "").split())
