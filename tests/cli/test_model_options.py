"""--device and --dtype: every command that loads a model has them, and the model is loaded so."""

from pathlib import Path

import pytest
import torch
from instances import without_shape_checks

import odesteer_tl as ot
from odesteer_tl.cli import main, models
from odesteer_tl.cli.exit_codes import DONE, REFUSED

LOADING = ["bench", "calibrate", "check", "compare", "contrastive", "demo", "fit", "generate", "sweep"]


@pytest.fixture
def loaded(monkeypatch):
    """The (device, dtype) of every model that is loaded."""
    found, load = [], ot.load_demo

    def noted(*args, **kwargs):
        demo = load(*args, **kwargs)
        weight = next(demo.model.parameters())
        found.append((str(weight.device), weight.dtype))
        return demo

    monkeypatch.setattr(ot, "load_demo", noted)
    return found


@pytest.mark.parametrize("command", LOADING)
def test_every_command_that_loads_a_model_shows_both(command, capsys):
    assert main([command, "--help"]) == DONE
    printed = capsys.readouterr().out
    assert "--device" in printed and "--dtype" in printed


@pytest.mark.parametrize("command", ["parity", "methods"])
def test_the_others_have_neither(command, capsys):
    assert main([command, "--dtype", "bfloat16"]) == REFUSED
    assert "No such option" in capsys.readouterr().err


def test_a_fit_in_16_bits_is_that_of_python(tmp_path, monkeypatch, loaded):
    monkeypatch.chdir(tmp_path)
    good, bad = ["What a lovely day.", "How kind of you."], ["What a dreadful day.", "How cruel of you."]
    Path("good.txt").write_text("\n".join(good))
    Path("bad.txt").write_text("\n".join(bad))
    line = ["fit", "good.txt", "bad.txt", "--method", "caa", "--layer", "2", "--position", "last",
            "--no-calibrate"]  # fmt: skip
    with without_shape_checks():
        assert main([*line, "wide"]) == DONE
        assert main([*line, "narrow", "--dtype", "bfloat16"]) == DONE
    assert loaded == [("cpu", torch.float32), ("cpu", torch.bfloat16)]
    model = ot.load_demo(dtype=torch.bfloat16).model
    acts = ot.collect(model, good, bad, layer=2, position="last")
    wide, narrow = (ot.load(name) for name in ("wide", "narrow"))
    right = ot.CAA.fit(acts)
    a = acts.desired
    assert torch.equal(narrow.steer(a, T=1.0), right.steer(a, T=1.0))
    assert not torch.equal(narrow.steer(a, T=1.0), wide.steer(a, T=1.0))


def test_the_embedded_model_of_a_demo_is_loaded_so(monkeypatch):
    from odesteer_tl.evaluation.reports import demo

    given = []
    monkeypatch.setattr(demo, "run_showcase", lambda **settings: given.append(settings["model"]))
    assert main(["demo"]) == main(["demo", "--dtype", "bfloat16"]) == DONE
    assert given == [None, "embedded"]
    assert models.device_and_dtype() == models.DEFAULTS  # after the command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "int8"], "'int8' is not one of float32, bfloat16, float16"),
        (["--device", "0"], "'0' is not a device"),
        (["--device", "meta"], "has no weights to run"),
        (["--device", "gpu"], "--model embedded cannot be loaded"),
    ],
)
def test_what_torch_does_not_know_is_refused(options, words, capsys):
    with without_shape_checks():
        assert main(["demo", "--quick", *options]) == REFUSED
    assert words in capsys.readouterr().err
