"""`odesteer-tl sweep --ablation`: planned, added to a finished folder, and its budget refused without it."""

import json

import pytest
from typer.testing import CliRunner

import odesteer_tl as ot
from odesteer_tl.cli import app

run = CliRunner()


@pytest.fixture
def line(tmp_path, monkeypatch):
    """A small sweep of the embedded model on files, and its folder."""
    loaded = ot.load_demo()
    monkeypatch.setattr(ot, "load_demo", lambda: loaded)
    files = {"good": loaded.desired[:8], "bad": loaded.undesired[:8], "prompts": ["The film opens with", "We saw it"]}
    for name, texts in files.items():
        (tmp_path / name).write_text("\n".join(" ".join(text.split()) for text in texts), encoding="utf-8")
    small = ["--keep", "1", "--seeds", "1", "--samples", "1", "--max-new-tokens", "3", "--strengths", "0.1"]
    texts = [str(tmp_path / "good"), str(tmp_path / "bad"), "--prompts", str(tmp_path / "prompts")]
    return ["sweep", *texts, "--methods", "caa", "--layers", "2", *small, "--out", str(tmp_path / "cells")]


def test_an_ablation_is_planned_added_and_resumed(line):
    planned = run.invoke(app, [*line, "--ablation", "--kl", "0.2", "--dry-run"])
    assert planned.exit_code == 0 and "At most 6 cells" in planned.stdout, planned.output
    assert planned.stdout.count(", 0.2 nats |") == 4
    plain = run.invoke(app, line)
    assert plain.exit_code == 0 and "Ablation" not in plain.output, plain.output
    added = run.invoke(app, [*line, "--ablation"])
    assert added.exit_code == 0 and "Ablation at 0.1 nats" in added.stdout, added.output
    assert added.stderr.count(": cell ") == 4
    again = run.invoke(app, [*line, "--ablation", "--json"])
    assert ": cell " not in again.stderr
    found = json.loads(again.stdout)["ablation"]
    assert [row["method"] for row in found["rows"]][::3] == ["linear, one step", "nonlinear, ten steps"]
    assert {"mean", "sd", "interval", "verdict"} == set(found["differences"]["nonlinear − linear, ten steps"])


def test_a_budget_without_an_ablation_is_refused(line):
    refused = run.invoke(app, [*line, "--kl", "0.2", "--dry-run"])
    assert refused.exit_code == 2 and "add --ablation" in refused.stderr, refused.output
