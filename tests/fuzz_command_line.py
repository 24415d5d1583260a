"""Random command lines, of which every one must end in a documented exit code and at most one line that says why.

`lines(number, seed)` runs them in this process. Models are tiny and loaded once; the study, the comparison and the
parity measurements are replaced, as they are slow and take no text of the user's.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from hostile_files import hostile_files

import odesteer_tl as ot
from odesteer_tl.assets.demo import Demo
from odesteer_tl.cli import main
from odesteer_tl.cli.exit_codes import BUG, DONE, EXIT_CODES, REFUSED, STOPPED, WRONG
from odesteer_tl.evaluation.plots import check_picture
from odesteer_tl.evaluation.reports import demo as demo_module
from odesteer_tl.evaluation.reports import paper
from odesteer_tl.parity import table

NUMBERS = [
    "0", "1", "2", "-1", "-0", "+1", "1.5", "1e3", "1e-9", "1e308", "-1e308", "1e999", "nan", "NaN", "inf", "-inf",
    "²", "１", "٣", "1_0", "0x1", "", " ", "one", "99999999999999999999999", "-" + "9" * 400, "9" * 5000, "2147483647",
    "2147483648", "18446744073709551616", "9223372036854775807", "1,5", "1;2", "None", "True", "--", "\udce9", "1\n2",
    "0.5", "1e-400", "3.0", "\x1b[31m1",
]  # fmt: skip
WORDS = ["", " ", "x" * 5000, "é", "\udcff", "a\nb", "--help", "-h", "-", "--", "../..", "~", "/", "//", "\u202e", "🙂",
         "%s", "{}", "\x1b[2J", "nul\0l", "embedded", "None", "C:\\x", "a b", "*"]  # fmt: skip
PICTURES = [
    "p.bmp",
    "p",
    ".png",
    "no/p.png",
    "/proc/p.png",
    "/p.pgf",
    "p.PNG",
    "p.png/",
    "loop/p.png",
    "/dev/null/p.png",
]
METHODS = ("repe", "iti", "caa", "mimic", "odesteer", "hpr", "truthflow")
MINE = re.compile(r"\[ *\d+\.\d s\] |Warning: ")
"""What may stand on standard error beside the line that says why: how far the demo is, and warnings."""
PYTHON = re.compile(
    r"\b(ot\.\w|[a-z_]+=[^=]|relative_T|top_p|max_new_tokens|NoneType|object has no attribute|Traceback)"
)
"""Words of the API, or of Python."""


def lines(number: int, seed: int = 0) -> Counter[int]:
    """How often each exit code came of `number` random command lines; raises AssertionError at one that ends badly."""
    chance, ends = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as folder, light_work(), _in(Path(folder)):
        files = hostile_files(Path(folder))
        for turn in range(number):
            work = Path(folder, f"work{turn}")
            work.mkdir()
            os.chdir(work)
            argv = _line(chance, files)
            ends[_checked(argv)] += 1
            os.chdir(folder)
            shutil.rmtree(work)
    return ends


def _checked(argv: list[str]) -> int:
    out, err = io.StringIO(), io.StringIO()
    stdin = io.TextIOWrapper(io.BytesIO(b"the film\na plot\n"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "stdin", stdin):
        code = main(argv)
    printed, said = out.getvalue(), err.getvalue()
    shown = f"{[each[:200] for each in argv]} -> {code}\n{printed[:2000]}\n{said[:4000]}"
    assert code in EXIT_CODES and code != BUG, shown
    assert "Traceback" not in printed + said and "\r" not in printed + said, shown
    rest = [line for line in said.splitlines() if not MINE.match(line)]
    if code == REFUSED:
        assert len(rest) == 1 and rest[0].startswith("Error: ") and len(rest[0]) <= 1000, shown
        assert rest[0].isprintable() and not PYTHON.search(rest[0]), shown
    else:
        assert not rest, shown
    assert code in (DONE, WRONG, STOPPED) or not printed, shown
    if code == DONE and "--json" in argv and "--help" not in argv:
        assert not re.search(r"\b(NaN|Infinity)\b", json.dumps(json.loads(printed))), shown
    return code


def _line(chance: random.Random, files: dict[str, list[str]]) -> list[str]:
    """A command with some of its options, most of whose values are good."""

    def of(good: list[str], bad: list[str]) -> str:
        return chance.choice(bad if chance.random() < 0.25 else good)

    def texts() -> str:
        return of(files["texts"], files["hostile texts"] + WORDS + files["folders"])

    def model() -> str:
        return of(files["models"], files["hostile models"] + WORDS + files["texts"])

    def output() -> str:
        return of(["out", "new/out"], files["folders"] + files["hostile models"] + files["texts"] + WORDS)

    def picture() -> str:
        return of(["p.png", "p.svg"], [*PICTURES, *WORDS, *files["folders"]])

    def small() -> str:
        return of(["0", "1"], NUMBERS)

    def method() -> str:
        return of(files["methods"], files["hostile methods"] * 3 + files["texts"] + WORDS)

    command = of(
        [
            "fit",
            "fit",
            "calibrate",
            "generate",
            "generate",
            "demo",
            "compare",
            "parity",
            "methods",
            "sweep",
            "check",
            "contrastive",
        ],
        WORDS,
    )
    options = {
        "fit": {
            "--layer": small, "--model": model, "--method": lambda: of(list(METHODS), WORDS), "--paired": None,
            "--position": lambda: of(["last", "mean", "all", "-1", "0"], NUMBERS + WORDS), "--queries": texts,
            "--prompts": texts, "--kl": lambda: of(["0.1", "0.01"], NUMBERS), "--no-calibrate": None, "--chat": None,
        },
        "calibrate": {
            "--kl": lambda: of(["0.1", "0.01"], NUMBERS), "--quantile": lambda: of(["0.9"], NUMBERS), "--model": model,
            "--max-new-tokens": lambda: of(["1", "3"], NUMBERS), "--chat": None,
        },
        "generate": {
            "--T": lambda: of(["1", "0.5"], NUMBERS), "--relative-T": lambda: of(["0.2"], NUMBERS), "--model": model,
            "--max-new-tokens": lambda: of(["1", "3"], NUMBERS), "--temperature": lambda: of(["0", "0.7"], NUMBERS),
            "--top-p": lambda: of(["0.9", "1"], NUMBERS), "--seed": lambda: of(["3"], NUMBERS),
        },
        "sweep": {
            "--model": model, "--prompts": texts, "--methods": lambda: of(["caa", "caa,iti"], NUMBERS + WORDS),
            "--layers": lambda: of(["0", "0,1", "0:2", "0:2:1"], [*NUMBERS, *WORDS, "2:1", "0:9:0", "::", "0:99"]),
            "--positions": lambda: of(["last", "mean,-1"], [*NUMBERS, *WORDS, "all"]), "--json": None,
            "--strengths": lambda: of(["0.1", "0.1,0.2"], [*NUMBERS, *WORDS, "0.1,", "0.1,x"]), "--dry-run": None,
            "--keep": lambda: of(["1"], NUMBERS), "--seeds": lambda: of(["1"], NUMBERS),
            "--samples": lambda: of(["1"], NUMBERS), "--max-new-tokens": lambda: of(["1", "3"], NUMBERS),
            "--out": output, "--ablation": None, "--kl": lambda: of(["0.1"], NUMBERS),
            "--guardrail": lambda: of(["kl<1", "distinct2>0.1", "unrelated_kl<1"], NUMBERS + WORDS),
            "--judge": lambda: of(["embedded", "texts", f"{texts()},{texts()}"], NUMBERS + WORDS), "--chat": None,
            "--unrelated": texts,
        },
        "contrastive": {
            "--axis": lambda: of(["verdict"], WORDS), "--desired": lambda: of(["is great"], WORDS), "--json": None,
            "--undesired": lambda: of(["is bad"], WORDS), "--ambiguous": lambda: of(["neither"], WORDS),
            "--model": model, "--questions": texts, "--no-answers": None,
            "--write-questions": lambda: of(["3"], NUMBERS),
            "--forms": lambda: of(["system", "persona,system"], [*WORDS, "few-shot"]), "--examples": texts,
            "--max-new-tokens": lambda: of(["3"], NUMBERS), "--seed": small, "--no-check": None,
            "--layers": lambda: of(["0", "0,1"], NUMBERS + WORDS),
        },
        "demo": {
            "--model": model, "--layer": small, "--quick": None, "--json": None, "--picture": picture,
            "--seed": lambda: of(["3"], NUMBERS), "--direction": lambda: of(["negative"], WORDS), "--chat": None,
        },
        "compare": {
            "--model": model, "--layer": small, "--quick": None, "--json": None, "--picture": picture,
            "--seeds": lambda: of(["1"], NUMBERS),
        },
        "check": {
            "--model": model, "--layers": lambda: of(["0", "0,1", "0:2"], NUMBERS + WORDS), "--paired": None,
            "--method": lambda: of(["caa", "iti"], WORDS), "--queries": texts, "--json": None, "--chat": None,
            "--position": lambda: of(["last", "mean"], NUMBERS + WORDS), "--html": output, "--seed": small,
        },
        "parity": {
            "--remote": lambda: of(["http://localhost:9"], WORDS), "--json": None,
            "--with": lambda: of(files["cells"], files["hostile texts"] + files["folders"] + WORDS),
        },
    }.get(command, {"--foo": small})  # fmt: skip
    line = {
        "fit": [texts, texts, output],
        "calibrate": [method, texts],
        "sweep": [texts, texts],
        "check": [texts, texts],
        "contrastive": [output],
        "generate": [method, lambda: of(["the film", "we saw it"], WORDS)],
    }.get(command, [])
    argv = [command, *(each() for each in line)]
    usual = {
        "fit": ["--layer", "--model"],
        "generate": ["--T"],
        "demo": ["--quick"],
        "sweep": ["--dry-run", "--keep", "--seeds", "--samples", "--max-new-tokens", "--strengths"],
        "calibrate": ["--kl", "--max-new-tokens"],
        "contrastive": ["--axis", "--desired", "--undesired", "--model", "--max-new-tokens"],
    }.get(command, [])
    for option, value in options.items():
        if chance.random() < (0.95 if option in usual else 0.3):
            argv += [option] if value is None else [option, value()]
    if chance.random() < 0.05:
        argv.insert(
            chance.randrange(len(argv) + 1), chance.choice([*WORDS, "--foo", "-x", "--json", "--help", "extra"])
        )
    if chance.random() < 0.03:
        argv.pop(chance.randrange(len(argv)))
    return argv


@contextlib.contextmanager
def light_work() -> Iterator[None]:
    """Good models are loaded once, and one small study serves for all models of a width."""
    load_model, demo = ot.load_model, ot.load_demo()
    compared, settings_of = demo_module.compared, demo_module.settings_of
    load_once, found = cache(load_model), {}

    def loaded(name: str) -> Any:
        return load_once(name) if Path(name).name == "model" else load_model(name)

    def few(model: Any = None) -> Demo:
        sides = ("desired", "undesired", "validation_desired", "validation_undesired")
        less = {name: getattr(demo, name)[:8] for name in sides} | {"prompts": demo.prompts[:3]}
        own = demo.model if model is None else model
        return replace(demo, model=own, validation_prompts=demo.validation_prompts[:2], **less)

    def brief(*given: Any, **options: Any) -> Any:
        return settings_of(*given, **options | {"max_new_tokens": 3, "samples": 1, "budgets": (0.1,)})

    def once(*given: Any) -> Any:
        width = given[0].texts.desired.shape[-1]  # a study's methods are drawn on the texts of a model of their width
        if width not in found:
            found[width] = compared(*given)
        return found[width]

    def comparison(*, model: str | None, picture: Path, out: Any, load: Any, **_: Any) -> None:
        check_picture(picture)
        few(None if model is None else load(model))
        out("{}")

    with (
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),  # names of no model are not sought elsewhere
        mock.patch.object(ot, "load_model", loaded),
        mock.patch.object(ot, "load_demo", lambda: demo),
        mock.patch.object(demo_module, "load_demo", few),
        mock.patch.object(demo_module, "compared", once),
        mock.patch.object(demo_module, "settings_of", brief),
        mock.patch.object(paper, "run_contest", comparison),
        mock.patch.object(table, "measured", lambda remote, quick: []),
    ):
        yield


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
