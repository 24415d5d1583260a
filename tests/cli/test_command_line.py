"""How command lines end: exit codes, one line that says why, checks before the work, and whose stream is whose."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fuzz_command_line import light_work
from instances import without_shape_checks
from safetensors import SafetensorError
from saved_folders import resealed

import odesteer_tl as ot
from odesteer_tl.cli import main
from odesteer_tl.cli.exit_codes import EXIT_CODES
from odesteer_tl.cli.messages import in_cli_words, on_one_line
from odesteer_tl.cli.text_files import check_readable, lines_of
from odesteer_tl.data.tokens import SiteTokens, warn_of_sinks
from odesteer_tl.evaluation.json_text import json_text
from odesteer_tl.evaluation.reports import demo, paper
from odesteer_tl.parity import table

ROOT = Path(__file__).parents[2]
WHOLE, REAL = (
    ["²", "1.5", "", "one", "nan", "9" * 30, "9" * 5000, "-9"],
    ["nan", "inf", "-inf", "1e999", "²", "", "one"],
)
FIT = ["fit", "good.txt", "bad.txt", "out", "--layer", "1", "--no-calibrate"]
GENERATE = ["generate", "method", "the film", "--T", "1"]
SWEEP = ["sweep", "good.txt", "bad.txt"]
CONTRAST = ["contrastive", "out", "--axis", "a", "--desired", "is b", "--undesired", "is c"]
OPTIONS = {
    "--layer": (["demo"], WHOLE), "--seed": (["demo"], WHOLE), "--seeds": (["compare"], [*WHOLE, "0", "1001"]),
    "--position": (FIT, ["²", "", "1.5", "first", "--1", "9" * 30]), "--max-new-tokens": (GENERATE, [*WHOLE, "0"]),
    "--T": (GENERATE, [*REAL, "1e308"]), "--relative-T": (GENERATE[:3], REAL), "--method": (FIT, ["", "gpt"]),
    "--temperature": (GENERATE, [*REAL, "-1", "1e-300"]), "--top-p": (GENERATE, [*REAL, "0", "1.1", "-1"]),
    "--model": (FIT, ["", " ", "\udce9"]), "--queries": (FIT, ["", " "]), "--picture": (["demo"], ["", " ", "-"]),
    "--direction": (["demo"], ["", "up"]), "--remote": (["parity"], ["", "ftp://x", "localhost:5001"]),
    "--with": (["parity"], [""]), "--kl": (FIT, [*REAL, "0", "-1", "1e9"]), "--prompts": (FIT, ["", " "]),
    "--methods": (SWEEP, ["", "gpt", "caa,", "hpr"]), "--layers": (SWEEP, [*WHOLE, "2:1", "0:9:0", "::", "1,"]),
    "--positions": (SWEEP, ["", "all", "last,random:3"]), "--strengths": (SWEEP, [*REAL, "0", "0.1,", "-1"]),
    "--keep": (SWEEP, [*WHOLE, "0"]), "--samples": (SWEEP, [*WHOLE, "0"]), "--out": (SWEEP, ["", " ", "-"]),
    "--guardrail": (SWEEP, ["", "kl", "kl<", "kl<nan", "kl<x", "other<1", "1<kl"]), "--unrelated": (SWEEP, ["", " "]),
    "--judge": (SWEEP, ["", "gpt", "a.txt", "a,b,c", ",b"]), "--forms": (CONTRAST, ["", "other", "system,"]),
    "--axis": (CONTRAST, ["", " "]), "--desired": (CONTRAST, ["", "\udce9"]), "--undesired": (CONTRAST, [""]),
    "--ambiguous": (CONTRAST, [""]), "--questions": (CONTRAST, [""]), "--examples": (CONTRAST, [" "]),
    "--write-questions": (CONTRAST, [*WHOLE, "1"]),
    "--quantile": (["calibrate", "method", "good.txt"], [*REAL, "0", "1", "-1"]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty folder, with the checks that users have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ODESTEER_TL_DEBUG", raising=False)
    Path("good.txt").write_text("the film is great\na fine plot\ngood\n", encoding="utf-8")
    Path("bad.txt").write_text("the film is bad\na dull plot\nslow\n", encoding="utf-8")
    with without_shape_checks():
        yield


@pytest.fixture
def method():
    torch.manual_seed(0)
    acts = ot.ContrastiveActivations(torch.randn(4, 8), torch.randn(4, 8), layer=1, model_name="embedded")
    ot.save(ot.CAA.fit(acts), "method")


def refused(capsys, argv, *words):
    """The one line that `argv` ends in, with exit code 2 and nothing on standard output."""
    assert main(argv) == 2
    printed, said = capsys.readouterr()
    lines = said.splitlines()
    assert not printed and len(lines) == 1 and lines[0].startswith("Error: ") and len(lines[0]) <= 1000, said
    assert all(word in said for word in words), said
    return said


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_refused_under_the_name_that_was_typed(option, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    line, values = OPTIONS[option]
    for value in values:
        said = refused(capsys, [*line, option, value], f"Invalid value for '{option}'")
        assert "integer string conversion" not in said  # Python's own words


def raising(error):
    def raises(*_, **__):
        raise error

    return raises


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (AttributeError("'int' object has no attribute 'x'"), 70, "a fault of odesteer_tl, not yours (AttributeError"),
        (ValueError("d_sae"), 70, "report it to its maintainers with the command"),  # raised outside the package
        (RuntimeError("shapes cannot be multiplied"), 70, "ODESTEER_TL_DEBUG=1 before the command shows where"),
        (MemoryError(), 2, "There is not enough memory: use a smaller model"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "There is not enough memory"),
        (
            RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "There is not enough memory",
        ),
        (RuntimeError("probability tensor contains either `inf`, `nan`"), 2, "a smaller --T or --relative-T"),
        (IndexError("index out of range in self"), 2, "the tokenizer in its folder belongs to another model"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "Error: x: No space left on device\n"),
        (ConnectionError("no server\nthere \x1b[2J"), 2, "Error: no server there \\x1b[2J\n"),
        (KeyboardInterrupt(), 130, None),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, None),
    ],
)
def test_whatever_happens_ends_in_a_documented_code(error, code, words, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", raising(error))
    assert main(FIT) == code and code in EXIT_CODES
    printed, said = capsys.readouterr()
    assert printed == "" and "Traceback" not in said
    assert not said.strip() if words is None else words in said and said.count("\n") == 1, said


def test_a_built_in_that_fails_in_a_line_of_ours_is_a_fault_of_ours(method, capsys, monkeypatch):
    texts = iter([["a"], ["a", "b"]])
    monkeypatch.setattr("odesteer_tl.cli.commands.chosen_model", lambda name: None)
    monkeypatch.setattr(ot, "generate", lambda *_, **__: SimpleNamespace(texts=next(texts)))
    assert main(GENERATE) == 70 and "(ValueError: zip() argument 2 is" in capsys.readouterr().err
    monkeypatch.setattr(ot, "generate", lambda *_, **__: lines_of(Path("absent.txt")))  # whose words are ours
    refused(capsys, GENERATE, "absent.txt is not a file")


def test_who_asks_gets_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("ODESTEER_TL_DEBUG", "1")
    assert main(["fit", "absent.txt", "bad.txt", "out", "--layer", "1"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("Error: absent.txt is not a file; it should hold one text per line.\n")


def test_a_method_is_not_written_to_standard_output(capsys):
    assert main([*FIT[:3], "-", "--layer", "1"]) == 2
    assert "- is standard input, where texts come from" in capsys.readouterr().err
    assert not Path("-").exists()


def test_help_and_documentation_name_every_exit_code(capsys):
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    written = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert "Exit codes:" in shown
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in shown.replace("│", "") and f"| {code} | " in written


FORKS = """
import json, os, sys
import odesteer_tl.methods.registry  # what the commands need, once for all forks
from odesteer_tl.cli import app

ends = []
for words, *streams in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        for number, path in enumerate(streams, 1):
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer if path == "nobody" else os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["odesteer-tl", *words]
        app()
    ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(ends))
"""
FULL, NOBODY, ABSENT = "/dev/full", "nobody", ["fit", "absent.txt", "bad.txt", "out", "--layer", "1"]
USERS = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""The environment of a process with the buffers that a user's has."""


def test_a_full_disc_and_an_output_that_nobody_reads():
    """Each in a process that ends as Python does; they are forked from one, as importing torch takes long."""
    cases = [
        (["methods"], NOBODY, "0.err"), (["fit", "--help"], NOBODY, "1.err"), (["methods"], FULL, "2.err"),
        (["methods"], "3.out", FULL), (ABSENT, "4.out", FULL), (["methods"], FULL, FULL),
    ]  # fmt: skip
    command = [sys.executable, "-c", FORKS, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=USERS)
    assert json.loads(done.stdout) == [141, 141, 2, 0, 2, 2], done
    assert not Path("0.err").read_text() and not Path("1.err").read_text()
    assert Path("2.err").read_text() == "Error: standard output: No space left on device\n"
    # what would be said on a full disc is lost, and nothing else
    assert Path("3.out").read_text() and not Path("4.out").read_text()


def test_a_process_of_its_own_and_closed_streams():
    command = [sys.executable, "-m", "odesteer_tl", "methods"]
    with open(FULL, "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, env=USERS)
    assert (done.returncode, done.stderr) == (2, "Error: standard output: No space left on device\n")
    closed = "import sys; sys.stderr = None; from odesteer_tl.cli import main; sys.exit(main(['fit']))"
    done = subprocess.run([sys.executable, "-c", closed], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("absent/x.png", "there is no folder"), ("x.bmp", "should end in .png, or in another of"),
        ("x", "should end in .png"), ("folder.png", "is a folder: name a file in it"),
        ("good.txt/x.png", "there is no folder"), ("/proc/x.png", "with write permission"),
        ("dangling.png", "there is no folder"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["demo", "compare"])
def test_where_a_picture_goes_is_looked_at_before_the_work(command, picture, words, capsys, monkeypatch):
    Path("folder.png").mkdir()
    Path("dangling.png").symlink_to("absent/x.png")
    for module in (demo, paper):
        monkeypatch.setattr(module, "load_demo", lambda *_: pytest.fail("worked for nothing"))
    refused(capsys, [command, "--quick", "--picture", picture], words, picture)


def test_the_table_is_printed_before_it_is_drawn(capsys, monkeypatch):
    monkeypatch.setattr(demo, "plot_budgets", raising(OSError(errno.ENOSPC, "No space left on device", "x.png")))
    with light_work():
        assert main(["demo", "--quick", "--layer", "2", "--json", "--picture", "x.png"]) == 2
        printed, said = capsys.readouterr()
        assert json.loads(printed)["rows"] and said.splitlines()[-1] == "Error: x.png: No space left on device"
        assert main(["demo", "--quick", "--layer", "2", "--picture", "x.png"]) == 2
    printed, said = capsys.readouterr()
    assert "Largest shift" in printed and "Picture:" not in printed and "\r" not in said


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("good.txt", "is a file"), ("good.txt/out", "good.txt is a file"), ("model", "config.json of something else"),
        ("linked", "config.json that is a link"), ("mine", "holds other files"), ("/proc/out", "cannot be written"),
        ("", "'.' is the current folder"), (".", "holds other files"), ("o" * 5000, "File name too long"),
    ],
)  # fmt: skip
def test_where_a_method_goes_is_looked_at_before_the_work(out, words, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    for folder in ("model", "mine", "linked"):
        Path(folder).mkdir()
    Path("model/config.json").write_text('{"model_type": "llama"}')
    Path("linked/config.json").symlink_to("absent.json")
    Path("mine/notes.txt").write_text("mine")
    refused(capsys, ["fit", "good.txt", "bad.txt", out, "--layer", "1"], words)
    assert Path("model/config.json").read_text() == '{"model_type": "llama"}'


def test_a_method_may_replace_a_method_and_a_disc_may_be_full(capsys, monkeypatch):
    assert main([*FIT, "--method", "caa"]) == 0 and main([*FIT, "--method", "iti"]) == 0
    assert isinstance(ot.load("out"), ot.ITI)
    capsys.readouterr()
    monkeypatch.setattr(ot, "save", raising(SafetensorError("Error while serializing: I/O error")))
    refused(capsys, FIT, "out cannot be written: Error while serializing")


def test_pairs_are_counted_before_a_model_reads_them(capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    Path("few.txt").write_text("the film\n")
    refused(capsys, [*FIT, "--method", "hpr"], "HPR", "--paired", "--queries FILE")
    refused(capsys, [*FIT, "--method", "truthflow", "--paired"], "TruthFlow", "--queries FILE")
    refused(capsys, [*FIT, "--queries", "few.txt"], "3 desired, 3 undesired, 1 queries lines")
    refused(capsys, ["fit", "good.txt", "few.txt", "out", "--layer", "1", "--paired"], "3 desired, 1 undesired lines")


@pytest.mark.parametrize("words", [[], ["--T", "1", "--relative-T", "1"]])
def test_one_strength_is_asked_for_before_a_model_is_loaded(words, method, capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    refused(capsys, [*GENERATE[:3], *words], "Give either --T or --relative-T")


@pytest.mark.parametrize("value", [5, [], True, {"a": 1}])
def test_a_saved_method_with_values_of_another_kind_is_refused(value, method, capsys):
    resealed(Path("method"), lambda tree: tree["method"]["origin"].update(hook_name=value))
    refused(capsys, GENERATE, "method")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "a folder without a config.json"),
        ({"config.json": b"{}"}, "cannot be loaded (ValueError)"),
        ({"config.json": b'{"model_type": "llama"}', "pytorch_model.bin": b"\x80\x04cos\n"}, "cannot be loaded ("),
        ({"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\x10"}, "cannot be loaded ("),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(files, words, method, capsys):
    Path("broken").mkdir()
    for name, data in files.items():
        Path("broken", name).write_bytes(data)
    for line in (FIT, GENERATE, ["demo", "--quick"]):
        main([*line, "--model", "broken"])
        printed, said = capsys.readouterr()
        (line,) = [line for line in said.splitlines() if not line.startswith("[")]
        assert not printed and line.startswith("Error: --model broken ") and words in line, said


def test_standard_input_and_pipes_are_read_as_files_are(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the film\r\na plot\n")))
    assert lines_of(Path("-")) == ["the film", "a plot"]
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text("good\n"))
    writer.start()
    assert lines_of(Path("pipe")) == ["good"]
    writer.join()
    with pytest.raises(ValueError, match="Standard input can be read once"):
        check_readable(Path("-"), Path("/dev/stdin"))
    monkeypatch.setattr(sys, "stdin", None)
    refused(capsys, ["fit", "-", "bad.txt", "out", "--layer", "1"], "Standard input is closed")


@pytest.mark.parametrize("text", ["5", "[1]", '[{"way": 3}]', '{"a": 1}', "[" * 100_000, "x"])
def test_cells_of_another_installation_are_checked_before_anything_is_measured(text, capsys, monkeypatch):
    monkeypatch.setattr(table, "measured", lambda *_: pytest.fail("worked for nothing"))
    Path("cells.json").write_text(text)
    refused(
        capsys, ["parity", "--with", "cells.json"], "cells.json does not hold what odesteer-tl parity --json prints"
    )
    cell = table.Cell("a", "b", "c", "d", True, 0.0, 1.0)
    Path("cells.json").write_text(table.written([cell]))
    assert table.read(Path("cells.json")) == [cell]
    Path("cells.json").write_text(table.written([cell]).replace("1.0", '"1.0"'))
    refused(capsys, ["parity", "--with", "cells.json"], "effect is '1.0'")
    refused(capsys, ["parity", "--with", "/dev/zero"], "/dev/zero does not hold", "it is larger than 16,777,216 bytes")


def test_cells_of_other_installations_are_joined_without_measuring(capsys, monkeypatch):
    monkeypatch.setattr(table, "measured", lambda *_: pytest.fail("measured"))
    for name, way, deviation in (("a", "Hugging Face", 1e-6), ("b", "nnsight remote", 3e-5)):
        Path(name).write_text(table.written([table.Cell(way, "CAA", "gpt2", "single", True, deviation, 1.0)]))
    join = ["parity", "--no-measure", "--with", "a"]
    assert main([*join, "--with", "b"]) == 0
    said = capsys.readouterr().out
    assert "| CAA | 3e-05 / 1.0 | 1e-06 / 1.0 |" in said and "is left out" not in said
    assert main([*join, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("a").read_text())
    refused(capsys, [*join, "--remote", "http://localhost:1"], "--no-measure joins the files of --with FILE")
    refused(capsys, ["parity", "--no-measure"], "--no-measure joins the files of --with FILE")


def test_what_libraries_print_is_no_part_of_the_output(capsys, monkeypatch):
    def noisy(acts):
        print("loading shards")
        warnings.warn_explicit("of a library", UserWarning, "/site-packages/lib.py", 1)
        warnings.warn_explicit("of ours:\nT=3", UserWarning, str(Path(ot.__file__).parent / "flow.py"), 1)
        return ot.CAA.fit(acts)

    monkeypatch.setattr(ot.ODESteer, "fit", noisy)
    assert main(FIT) == 0
    printed, said = capsys.readouterr()
    assert printed.startswith("Fitted CAA on 3") and printed.count("\n") == 1
    assert said == "loading shards\nWarning: of ours: --T 3\n"


def test_json_has_no_numbers_that_json_does_not_know():
    assert json.loads(json_text({"a": [1.0, float("nan")], "b": (float("inf"), "NaN", True)})) == {
        "a": [1.0, None],
        "b": [None, "NaN", True],
    }


def test_a_line_is_short_and_holds_no_control_characters():
    assert on_one_line("a\nb\t c\x1b[2J\u202e\udce9") == "a b c\\x1b[2J\\u202e\\udce9"
    long = on_one_line("x" * 5000 + "end")
    assert len(long) <= 1000 and long.endswith("xend") and " … " in long


def test_a_pipe_is_read_once_under_whatever_name(capsys, monkeypatch):
    monkeypatch.setattr(ot, "load_demo", lambda: pytest.fail("worked for nothing"))
    os.mkfifo("pipe")
    os.symlink("pipe", "other name")
    for names in (["pipe", "pipe"], ["pipe", "other name"], ["pipe", "./pipe"]):
        refused(capsys, ["fit", *names, "out", "--layer", "1"], "A pipe can be read once")


def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(OSError, match="/proc/self/mem"):
        lines_of(Path("/proc/self/mem"))


@pytest.mark.parametrize("text", ["1_000", "٣", " 3", "3 ", "３"])
def test_a_number_is_one_in_plain_digits(text, method, capsys):
    refused(capsys, ["generate", "method", "film", "--T", text], "is not a number")


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent.gguf", "There is no file absent.gguf"), ("no.gguf", "is no GGUF file"), ("good.txt", "a .gguf file")],
)
def test_a_gguf_file_is_looked_at_before_the_work(name, words, capsys, monkeypatch):
    monkeypatch.setattr(ot, "collect", lambda *_, **__: pytest.fail("worked for nothing"))
    Path("no.gguf").write_text("GG")
    Path("kept.gguf").write_bytes(b"GGUF and more")
    refused(capsys, [*FIT, "--model", name], words)
    refused(capsys, [*FIT, "--model", "./kept.gguf"], "./kept.gguf cannot be loaded", "the file may be damaged")


def test_attention_sinks_are_told_of_without_arguments_that_no_option_sets():
    norms = torch.tensor([100.0, 1.0, 1.1, 0.9])
    sink, every = norms > 50, torch.ones(4, dtype=torch.bool)
    for position, named in (("mean", every), ("last", sink)):
        with pytest.warns(UserWarning, match="attention sinks") as told:
            warn_of_sinks([SiteTokens(norms, sink, named, named)], ["blocks.1"], position, lambda hit, most: "", 1)
        said = in_cli_words(str(told[0].message))
        assert "keep_sinks" in str(told[0].message) and "keep_sinks" not in said and "skip=" not in said
        assert "attention sinks" in said and said.endswith(".")
