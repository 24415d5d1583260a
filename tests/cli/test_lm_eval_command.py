"""`odesteer-tl lm-eval`: all arguments are lm-eval's; without it, or where it fails, one line says so."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from instances import planted, without_shape_checks

import odesteer_tl as ot
from odesteer_tl.cli import lm_eval_command, main
from odesteer_tl.integrations.steered_model import SteeredModel

DEMO = ot.load_demo()
COMMAND = "odesteer_tl.integrations.lm_eval"


@pytest.fixture
def ran(monkeypatch):
    """What lm-eval's command line would get; `ran.error` is what it raises."""
    seen = SimpleNamespace(arguments=None, error=None)

    def run(arguments):
        seen.arguments = arguments
        if seen.error is not None:
            raise seen.error

    package, module = ModuleType(COMMAND), ModuleType(f"{COMMAND}.command")
    module.main = run
    monkeypatch.setitem(sys.modules, COMMAND, package)
    monkeypatch.setitem(sys.modules, f"{COMMAND}.command", module)
    monkeypatch.setattr(lm_eval_command, "find_spec", lambda name: object())
    return seen


@pytest.mark.parametrize(
    "line",
    [[], ["--help"], ["ls", "tasks"], ["--model", "odesteer", "--model_args", "pretrained=x,kl=0.5", "--limit=3"]],
)
@without_shape_checks()
def test_arguments_are_handed_on_as_they_are(ran, line):
    assert main(["lm-eval", *line]) == 0 and ran.arguments == line


@without_shape_checks()
def test_without_lm_eval_it_says_what_to_type(monkeypatch, capsys):
    monkeypatch.setattr(lm_eval_command, "find_spec", lambda name: None)
    assert main(["lm-eval", "--model", "odesteer"]) == 2
    assert "pip install 'odesteer_tl[lm-eval]'" in capsys.readouterr().err


@pytest.mark.parametrize("error, code", [(KeyError("arc"), 2), (SystemExit(2), 2), (SystemExit(0), 0)])
@without_shape_checks()
def test_what_fails_in_lm_eval_is_not_called_a_fault_of_ours(ran, capsys, error, code):
    ran.error = error
    assert main(["lm-eval"]) == code
    said = capsys.readouterr().err
    assert "fault of odesteer_tl" not in said and (not isinstance(error, KeyError) or "lm-eval failed" in said)


@without_shape_checks()
def test_its_arguments_keep_their_names(monkeypatch, ran, capsys):
    method = ot.CAA.fit(planted())
    monkeypatch.setattr(sys.modules[f"{COMMAND}.command"], "main", lambda arguments: SteeredModel(DEMO.model, method))
    assert main(["lm-eval"]) == 2
    assert "give kl=0.1, T= or relative_T=." in capsys.readouterr().err
