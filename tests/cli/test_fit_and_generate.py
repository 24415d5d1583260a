"""The commands, as a person types them."""

import json
from dataclasses import replace

import models
import pytest
import torch
from instances import shorter
from typer.testing import CliRunner

import odesteer_tl as ot
from odesteer_tl.cli import app
from odesteer_tl.cli.values import method_names
from odesteer_tl.evaluation.reports import ablation, demo, paper
from odesteer_tl.flows.features import Polynomial
from odesteer_tl.flows.grid_search import tune

run = CliRunner()
GOOD = ["the film is great", "a fine plot", "we saw it and it was good", "truly great", "great and never dull"] * 4
BAD = ["the film is bad", "a dull plot", "we saw it and it was slow", "truly bad", "slow and never great"] * 4


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    models.hugging_face("llama").save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "good.txt").write_text("\n".join(GOOD) + "\n\n", encoding="utf-8")
    (tmp_path / "bad.txt").write_text("\n".join(BAD), encoding="utf-8")
    return str(tmp_path / "good.txt"), str(tmp_path / "bad.txt")


def test_fit_then_generate_on_a_local_folder(model_folder, texts, tmp_path):
    out = str(tmp_path / "method")
    fitted = run.invoke(app, ["fit", *texts, out, "--layer", "1", "--model", model_folder, "--position", "mean"])
    assert fitted.exit_code == 0, fitted.output
    assert f"20 desired and 20 undesired activations of {model_folder} at blocks.1.hook_resid_post" in fitted.output
    assert {file.suffix for file in (tmp_path / "method").iterdir()} == {".json", ".safetensors"}
    words = ["generate", out, "the film", "we saw it", "--relative-T", "3", "--max-new-tokens", "6"]
    first = run.invoke(app, [*words, "--model", model_folder])
    assert first.exit_code == 0, first.output
    assert first.output.count("unsteered  thefilm") == 1 and first.output.count("steered    wesawit") == 1
    lines = [line for line in first.output.splitlines() if line]
    assert any(a.split(maxsplit=1)[1] != b.split(maxsplit=1)[1] for a, b in zip(lines[::2], lines[1::2], strict=True))
    assert run.invoke(app, [*words, "--model", model_folder]).output == first.output
    assert run.invoke(app, words).output == first.output  # the model of the fit is remembered


def test_a_sweep_is_planned_run_and_resumed(texts, tmp_path, monkeypatch):
    loaded = ot.load_demo()
    monkeypatch.setattr(ot, "load_demo", lambda: loaded)
    (tmp_path / "prompts.txt").write_text("The film opens with\nWe saw it\n", encoding="utf-8")
    small = ["--keep", "1", "--seeds", "1", "--samples", "1", "--max-new-tokens", "3", "--strengths", "0.1"]
    line = ["sweep", *texts, "--prompts", str(tmp_path / "prompts.txt"), "--methods", "caa", "--layers", "1:4:2"]
    out = ["--out", str(tmp_path / "cells")]
    planned = run.invoke(app, [*line, *small, *out, "--dry-run"])
    assert planned.exit_code == 0 and not (tmp_path / "cells").exists(), planned.output
    assert "layers 1, 3" in planned.stdout and "At most 2 cells" in planned.stdout and not planned.stderr
    first = run.invoke(app, [*line, *small, *out])
    assert first.exit_code == 0, first.output
    for words in ("| CAA | 1 | last |", "| 0.1 | T=", "no steering", "Best within the guardrails", "of held-out texts"):
        assert words in first.stdout, first.output
    assert first.stderr.count(": cell ") == 2 and "Evaluation plan" in first.stderr
    again = run.invoke(app, [*line, *small, *out])
    assert again.stdout == first.stdout and ": cell " not in again.stderr
    found = json.loads(run.invoke(app, [*line, *small, *out, "--json"]).stdout)
    assert [row["method"] for row in found["rows"]] == ["no steering", "CAA"]
    other = run.invoke(app, [*line, *small, *out, "--samples", "2"])
    assert other.exit_code == 2 and "samples: 1 in the folder, 2 now" in other.stderr and "--out" in other.stderr
    few = run.invoke(app, [*line, *small, "--layers", "1:99"])
    assert few.exit_code == 2 and "Layer 6 does not exist: this model has layers 0 to 5" in few.stderr


def test_fit_on_the_embedded_model_serves_other_words(texts, tmp_path):
    out = str(tmp_path / "caa")
    fitted = run.invoke(app, ["fit", *texts, out, "--layer", "2", "--method", "CAA", "--no-calibrate"])
    assert fitted.exit_code == 0, fitted.output
    steered = run.invoke(app, ["generate", out, "The film opens with", "--T", "1", "--max-new-tokens", "5"])
    assert steered.exit_code == 0, steered.output
    assert "steered    The film opens with" in steered.output


@pytest.mark.parametrize("name", method_names())
def test_every_method_of_the_literature_is_fitted_and_steers(name, model_folder, texts, tmp_path, short_training):
    (tmp_path / "asked.txt").write_text(
        "\n".join(["we saw the film", "we saw it", "the film"][n % 3] for n in range(20)), encoding="utf-8"
    )
    out, queries = str(tmp_path / "method"), ["--queries", str(tmp_path / "asked.txt")]
    asked = {"truthflow": queries, "repe": queries, "hpr": ["--paired"]}.get(name, [])
    where = ["--layer", "1", "--model", model_folder, "--position", "mean", "--method", name, "--no-calibrate"]
    fitted = run.invoke(app, ["fit", *texts, out, *where, *asked])
    assert fitted.exit_code == 0, fitted.output
    method = ot.load(out)
    assert method.view.T.start in fitted.output
    assert type(method).__name__.lower() == name
    asked = run.invoke(app, ["generate", out, "the film", "--T", "1", "--max-new-tokens", "3"])
    assert asked.exit_code == 0 and "steered    thefilm" in asked.output, asked.output


def test_fit_says_which_texts_a_method_lacks(model_folder, texts, tmp_path):
    where = [str(tmp_path / "method"), "--layer", "1", "--model", model_folder, "--method"]
    for name in ("truthflow", "hpr"):
        refused = run.invoke(app, ["fit", *texts, *where, name])
        assert refused.exit_code == 2 and "--paired" in refused.output, refused.output
        assert "paired=True" not in refused.output and "queries=" not in refused.output  # the words of the API
    (tmp_path / "asked.txt").write_text("we saw the film", encoding="utf-8")
    few = run.invoke(app, ["fit", *texts, *where, "truthflow", "--queries", str(tmp_path / "asked.txt")])
    assert few.exit_code == 2 and "20" in few.output and not (tmp_path / "method").exists()


def test_a_method_that_names_no_model_is_not_run_on_another(tmp_path):
    torch.manual_seed(0)
    ot.save(ot.CAA.fit(ot.ContrastiveActivations(torch.randn(4, 8), torch.randn(4, 8), layer=1)), tmp_path / "nameless")
    refused = run.invoke(app, ["generate", str(tmp_path / "nameless"), "the film", "--T", "1"])
    assert refused.exit_code == 2 and "does not say which model" in refused.output and "--model" in refused.output


def test_messages_speak_of_options():
    from odesteer_tl.cli.messages import in_cli_words

    said = "pass paired=True and queries=[n, d], a layer=3, position=0 and T=2 or relative_T=0.2"
    assert in_cli_words(said) == (
        "pass --paired and --queries FILE, a --layer 3, --position 0 and --T 2 or --relative-T 0.2"
    )


def test_answers_go_on_where_their_queries_end_and_no_line_is_skipped(texts, tmp_path, monkeypatch):
    seen, collect = [], ot.collect
    monkeypatch.setattr(ot, "collect", lambda *a, **k: seen.append(collect(*a, **k)) or seen[-1])
    good, bad, asked = (tmp_path / name for name in ("good.txt", "bad.txt", "asked.txt"))
    good.write_text(" great\n" * 20, encoding="utf-8")
    bad.write_text(" bad\u2028indeed\n" * 20 + "\n", encoding="utf-8")
    asked.write_text("The film was\n" * 20, encoding="utf-8")
    words = ["fit", *texts, str(tmp_path / "method"), "--layer", "1", "--method", "caa", "--no-calibrate"]
    assert run.invoke(app, [*words, "--queries", str(asked)]).exit_code == 0
    ((tokens, mask), _) = seen[0].tokens
    tokenizer = ot.load_demo().model.tokenizer
    assert tokenizer.decode(tokens[0][mask[0]], skip_special_tokens=True) == "The film was great"
    bad.write_text(" bad\n\n" + " bad\n" * 19, encoding="utf-8")
    for pairs in (["--paired"], ["--queries", str(asked)]):
        refused = run.invoke(app, [*words, *pairs])
        assert refused.exit_code == 2 and "Line 2 of" in refused.output
    assert run.invoke(app, words).exit_code == 0  # texts that are not paired may have blank lines between them


def test_queries_stand_in_the_chat_template_and_so_do_the_prompts_after_them(tmp_path, monkeypatch):
    """As a model with a template is asked; what the method was calibrated on, `generate` and `calibrate` go on with."""
    demo = ot.load_demo()
    demo.model.tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }} A:{% endfor %}"
    monkeypatch.setattr(ot, "load_demo", lambda: demo)
    seen = []
    for name in ("collect", "calibrate", "generate"):
        verb = getattr(ot, name)
        monkeypatch.setattr(
            ot, name, lambda *a, _verb=verb, _name=name, **k: seen.append((_name, k["chat_template"])) or _verb(*a, **k)
        )
    files = {"good": " great\n fine\n" * 4, "bad": " bad\n dull\n" * 4, "asked": "The film was\nIt is\n" * 4}
    good, bad, asked = (str(tmp_path / name) for name in files)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    place, out, said = ["--layer", "2", "--position", "mean", "--method", "caa"], str(tmp_path / "method"), []

    def chats(*words):
        seen.clear()
        result = run.invoke(app, list(words))
        assert result.exit_code == 0, result.output
        said.append(result.output)
        return seen.copy()

    assert chats("fit", good, bad, out, *place, "--queries", asked) == [("collect", True), ("calibrate", True)]
    assert chats("generate", out, "It was", "--max-new-tokens", "2") == [("generate", True)] * 2
    assert chats("generate", out, "It was", "--max-new-tokens", "2", "--no-chat") == [("generate", False)] * 2
    assert "found on prompts in the chat template, and is used out of it" in said[-1] and "--no-chat" in said[-1]
    assert "is used out of it" not in said[-2] and "of the embedded model at blocks.2" in said[0]
    assert chats("calibrate", out, asked, "--max-new-tokens", "2") == [("calibrate", True)]
    assert chats("fit", good, bad, out, *place) == [("collect", False), ("calibrate", False)]
    assert chats("generate", out, "It was", "--max-new-tokens", "2") == [("generate", False)] * 2
    assert chats("fit", good, bad, out, *place, "--no-calibrate", "--chat") == [("collect", True)]
    assert "give --chat to `generate` and `calibrate`" in said[-1]
    first = run.invoke(app, ["fit", good, bad, out, "--layer", "2", "--position", "0"])  # not the default, "last"
    assert first.exit_code == 2 and "are the same ones" in first.output
    twice = run.invoke(app, ["fit", good, good, out, "--layer", "2"])
    assert twice.exit_code == 2 and "hold the same texts" in twice.output
    generate = ot.generate

    def silent(*given, **options):
        made = generate(*given, **options)
        return replace(made, continuations=["" for _ in made.continuations])

    monkeypatch.setattr(ot, "generate", silent)
    ended = run.invoke(app, ["generate", out, "It was", "--T", "1", "--max-new-tokens", "1", "--no-chat"])
    assert "answers in a chat template: give --chat" in ended.output
    assert "give --chat" not in run.invoke(app, ["generate", out, "It was", "--T", "1", "--chat"]).output
    monkeypatch.setattr(ot, "generate", generate)
    words = ["--queries", asked, "--no-chat"]
    assert chats("fit", good, bad, out, *place, *words) == [("collect", False), ("calibrate", False)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "absent.txt", "absent.txt", "out", "--layer", "1"], "absent.txt is not a file"),
        (["generate", "absent", "a prompt", "--T", "1"], "not a saved odesteer_tl folder"),
        (["demo", "--quick", "--layer", "99"], "Layer 99 does not exist"),
    ],
)
def test_bad_input_ends_in_its_message(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run.invoke(app, words)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["fit", "--layer", "1"], ["demo", "--quick"]], ids=" ".join)
def test_a_chat_without_a_template_is_refused_in_the_words_of_the_command_line(command, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [*texts, "out"] if command[0] == "fit" else []
    said = run.invoke(app, [command[0], *files, *command[1:], "--chat"])
    assert said.exit_code == 2 and "has no chat template: leave out --chat" in said.output.replace("\n", " ")
    assert "chat=" not in said.output and "chat_template" not in said.output


def test_without_layer_position_and_strength_all_are_found_and_kept(model_folder, texts, tmp_path):
    out, prompts = str(tmp_path / "method"), tmp_path / "prompts.txt"
    fitted = run.invoke(app, ["fit", *texts, out, "--model", model_folder, "--method", "caa", "--kl", "0.05"])
    assert fitted.exit_code == 0, fitted.output
    kept = ot.load(out)
    assert isinstance(kept, ot.Calibrated) and isinstance(kept.method, ot.CAA) and kept.kl == 0.05
    assert f"Layer {kept.layer}, position" in fitted.output and f"T = {kept.T:.4g} spends" in fitted.output
    words = ["the film", "--model", model_folder, "--max-new-tokens", "6"]
    steered = run.invoke(app, ["generate", out, *words])
    assert steered.exit_code == 0, steered.output
    assert run.invoke(app, ["generate", out, *words, "--T", str(kept.T)]).output == steered.output
    prompts.write_text("the film\na plot\n", encoding="utf-8")
    found = run.invoke(app, ["calibrate", out, str(prompts), "--kl", "0.2", "--max-new-tokens", "6"])
    assert found.exit_code == 0, found.output
    again = ot.load(out)
    assert again.kl == 0.2 and again.T > kept.T and f"T = {again.T:.4g} spends" in found.output
    model = ot.load_model(model_folder)
    expected = ot.calibrate(model, kept.method, ["the film", "a plot"], 0.2, max_new_tokens=6)
    assert expected.strength.T == pytest.approx(again.T, rel=1e-6) and expected.method.prompts == again.prompts


def test_a_method_that_cannot_spend_the_budget_is_kept_without_a_strength(model_folder, texts, tmp_path):
    out = str(tmp_path / "method")
    words = ["fit", *texts, out, "--model", model_folder, "--method", "linearact", "--layer", "0", "--kl", "90"]
    fitted = run.invoke(app, words)
    assert fitted.exit_code == 0, fitted.output
    assert "It carries no strength: LinearAcT does not spend 90 nats" in " ".join(fitted.output.split())
    assert isinstance(ot.load(out), ot.LinearAcT)


def test_generate_wants_one_strength(model_folder, texts, tmp_path):
    out = str(tmp_path / "method")
    words = ["fit", *texts, out, "--layer", "1", "--model", model_folder, "--no-calibrate"]
    assert run.invoke(app, words).exit_code == 0
    for words in ([], ["--T", "1", "--relative-T", "1"]):
        result = run.invoke(app, ["generate", out, "the film", "--model", model_folder, *words])
        assert result.exit_code == 2 and "Give either --T or --relative-T" in result.output


def fewer(data):
    """The data of the demo with short texts and few prompts."""
    return replace(shorter(data), prompts=data.prompts[:4], validation_prompts=data.validation_prompts[:3])


def test_the_demo_runs_on_any_folder_and_prints_json(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_demo", lambda model: fewer(ot.load_demo(model)))
    picture = tmp_path / "demo.png"
    words = ["demo", "--quick", "--json", "--direction", "negative", "--model", model_folder, "--layer", "1"]
    result = run.invoke(app, [*words, "--picture", str(picture)])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    names = ["no steering", "random direction", "CAA", "ITI", "one-step ODESteer", "ODESteer"]
    assert [row["name"] for row in facts["rows"]] == names
    assert facts["layer"] == 1 and facts["goal"] == "its opposite"
    assert facts["judge_accuracy"]["whole"] >= 0.8
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_compare_runs_on_any_folder_and_prints_json(model_folder, tmp_path, monkeypatch, short_training):
    counts = paper.Counts(prompts=2, validation_prompts=2, samples=2, max_new_tokens=3, seeds=2)
    monkeypatch.setattr(paper, "QUICK", counts)

    def few(acts, features=None, seed=0):
        return tune(acts, features or [Polynomial()], Cs=(1,), folds=2, seed=seed)

    monkeypatch.setattr(ablation, "tune", few)
    monkeypatch.setattr(paper, "load_demo", lambda model: fewer(ot.load_demo(model)))
    picture = tmp_path / "compare.png"
    words = ["compare", "--quick", "--json", "--seeds", "1", "--model", model_folder, "--layer", "1"]
    result = run.invoke(app, [*words, "--picture", str(picture)])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    names = [row["name"] for row in facts["rows"]]
    assert names[0] == "no steering" and {"HPR", "ODESteer", "prompt only", "tuned linear, one step"} <= set(names)
    assert facts["layer"] == 1 and facts["seeds"] == [0]
    assert all(len(row["runs"]) == 1 for row in facts["rows"])
    assert set(facts["ablation"]["cosines"]) == {"paper", "tuned"}
    assert picture.read_bytes()[:4] == b"\x89PNG"
    wrong = run.invoke(app, ["compare", "--quick", "--seeds", "0"])
    assert wrong.exit_code == 2 and "--seeds" in wrong.output and "0 is not from 1" in wrong.output
