"""Laws of the unified view: the tables of the docs are the code's and the tests', and their columns hold."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from instances import D_MODEL, activations, planted, without_shape_checks

from odesteer_tl.methods import FlowMethod
from odesteer_tl.methods.registry import registered
from odesteer_tl.methods.view import View, unified_table

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
PAPER = ["RepE", "ITI", "CAA", "MiMiC", "HPR", "RE-Control", "Linear-AcT", "TruthFlow", "one-step ODESteer", "ODESteer"]
METHODS = [entry.method for entry in registered()]
FITTED = [entry.method for entry in registered() if entry.fits_activations]
QUERIES = torch.randn(60, D_MODEL, generator=torch.Generator().manual_seed(9))
DATA = {
    "both sides": planted(60, 45),
    "one side": planted(60, 45),
    "pairs": replace(planted(60, 60), paired=True),
    "pairs with queries": replace(planted(60, 60), paired=True, queries=QUERIES),
}


def fitted(cls, data):
    return cls.fit(data, **({"epochs": 2} if cls.__name__ in ("HPR", "REControl", "TruthFlow") else {}))


def test_the_table_of_the_docs_is_the_codes():
    """To write it anew, put what `odesteer-tl methods` prints in its place."""
    assert unified_table(METHODS) in DOCS.read_text(encoding="utf-8")


def test_every_class_has_a_test_with_a_planted_answer_that_is_there():
    _, _, table = DOCS.read_text(encoding="utf-8").partition("## Planted answers")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{cls.__name__}`" for cls in METHODS]
    for name, planted_there, cited in rows:
        tests = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cited)
        assert planted_there and tests and len(tests) == cited.count("::"), name
        for file, function in tests:
            tree = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (name, function)


def test_the_papers_methods_are_all_there_in_its_order():
    seen = [cls for cls in METHODS if hasattr(cls, "view")]
    assert [cls.view.name for cls in seen][: len(PAPER)] == PAPER
    lines = unified_table(METHODS).splitlines()
    assert len(lines) == 2 + len(seen) and len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("cls", FITTED, ids=lambda cls: cls.__name__)
def test_a_fit_takes_what_it_says_and_refuses_less(cls):
    ladder = list(DATA)
    for needs in ladder[ladder.index(cls.view.needs) :]:
        fitted(cls, DATA[needs])
    if cls.view.needs.startswith("pairs"):
        for less in ladder[: ladder.index(cls.view.needs)]:
            with pytest.raises(ValueError, match="pair"):
                fitted(cls, DATA[less])


@pytest.mark.parametrize("cls", FITTED, ids=lambda cls: cls.__name__)
def test_the_norm_becomes_what_it_says(cls):
    method, a, T = fitted(cls, DATA[cls.view.needs]), activations(20), 2.0 if cls.view.T.bounds != (0, 1) else 0.7
    before, after = a.norm(dim=1), method.steer(a, T=T).norm(dim=1)
    expected = {
        "‖a‖": before,
        "√(‖a‖² + T²)": (before.square() + T**2).sqrt(),
        "√(‖a‖² + T²/steps)": (before.square() + T**2 / 10).sqrt(),
    }
    held = {law for law, norm in expected.items() if torch.allclose(after, norm, rtol=1e-5)}
    assert held == (set() if cls.view.norm == "any" else {cls.view.norm})


@pytest.mark.parametrize("cls", FITTED, ids=lambda cls: cls.__name__)
def test_the_steps_and_the_barrier_are_those_that_it_says(cls):
    method = fitted(cls, DATA[cls.view.needs])
    assert (method.barrier is None) == (cls.view.h == "none")
    if isinstance(method, FlowMethod):
        assert str(method.flow.steps) == cls.view.steps


def test_a_view_says_what_can_be_checked():
    with without_shape_checks(), pytest.raises(ValueError, match="grows"):
        View("x", "h", "v", "1", "grows", "both sides", "")  # type: ignore[arg-type]
