"""What the tests of remote execution share: a server, the wheel that a user would have, and clients that use both.

A client runs in a process of its own with the wheel unpacked into a folder named site-packages. The checkout would not
do: nnsight sends every module that it finds outside site-packages along with a request, so that code which no user
could run remotely would pass.

    found = client(SCRIPT, installed_wheel(), saved_model("llama"), server().url)
"""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import models
from warm_python import Script, WarmPython

ROOT = Path(__file__).parents[1]
_lasting = ExitStack()
atexit.register(_lasting.close)
PREAMBLE = (
    (ROOT / "tests/asked_once.py").read_text(encoding="utf-8")
    + """
import importlib.util, json, os, sys
for patch in patches():
    patch.start()
import nnsight, torch
from nnsight.modeling.huggingface import _ID_CACHE

_found = importlib.util.find_spec("odesteer_tl")
assert _found.origin.startswith(os.environ["PYTHONPATH"] + os.sep), f"not from the wheel: {_found.origin}"

def load(folder):  # a local folder goes by its path, where nnsight would ask the Hub for the repository's name
    _ID_CACHE[folder] = folder
    return nnsight.TransformersModel(folder, task="text-generation", dispatch=True)

def report(**values):
    print(json.dumps(values))
"""
)


class Serving:
    """A running loopback server."""

    def __init__(self, process: subprocess.Popen | Script, stdin: BinaryIO, port: int):
        self.process, self.stdin = process, stdin  # it ends when its standard input is closed
        self.url = f"http://127.0.0.1:{port}"

    def fault(self, kind: str) -> None:
        """Spoil the next request: see loopback.FAULTS."""
        self._json("/fault", json.dumps({"kind": kind}).encode())

    def last(self) -> dict:
        """The latest request's count, bytes, model_key and nnsight_version."""
        return self._json("/last")

    def _json(self, path: str, data: bytes | None = None) -> dict:
        with urllib.request.urlopen(self.url + path, data, timeout=60) as answer:
            return json.load(answer)


def _started(command: list, environment: dict[str, str], folder: str | Path, *streams: int) -> subprocess.Popen:
    """As WarmPython.start, in a Python that is new."""
    stdin, stdout, stderr = streams
    command = [sys.executable, *command]
    return subprocess.Popen(command, env=environment, cwd=folder, stdin=stdin, stdout=stdout, stderr=stderr)


@cache
def _warm_python() -> WarmPython:
    """What it forks reads this nnsight.yaml, as nnsight reads it while it is imported."""
    config = Path(_place().name) / "nnsight.yaml"
    config.write_text("APP: {REMOTE_LOGGING: false}", encoding="utf-8")
    warm = WarmPython(_environment(NNSIGHT_CONFIG=str(config), HF_HUB_OFFLINE="1"))
    _lasting.callback(warm.close)
    return warm


@contextmanager
def serving(*options: str, warm: bool = True) -> Iterator[Serving]:
    """A server of its own, with the options of loopback.py; it could import the checkout, were it not for its guard.

    `warm=False` starts it as a user would, which takes 3 s.
    """
    start = _warm_python().start if warm else _started
    command = [str(ROOT / "tests" / "loopback.py"), *options]
    theirs, ours = os.pipe()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as errors, open(ours, "wb") as stdin, open(reading) as stdout:
        process = start(command, {**os.environ, "PYTHONPATH": str(ROOT)}, ROOT, theirs, writing, errors.fileno())
        os.close(theirs)
        os.close(writing)
        try:
            line = stdout.readline() if select.select([stdout], [], [], 120)[0] else ""
            if not line:
                errors.seek(0)
                raise AssertionError(f"The loopback server did not start:\n{errors.read()}")
            ready = json.loads(line)
            assert ready["odesteer_tl"] is False, ready
            yield Serving(process, stdin, ready["port"])
        finally:
            stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@cache
def server() -> Serving:
    """A server with the usual options, which lasts as long as this process: for tests that leave nothing in it."""
    return _lasting.enter_context(serving())


@cache
def _place() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="odesteer_tl-")  # goes when the process ends


@cache
def installed_wheel() -> Path:
    """A folder named site-packages with this checkout's wheel in it, as pip unpacks it; built once."""
    place = Path(_place().name)
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check", "-w", place, ROOT]
    if find_spec("hatchling"):  # else pip fetches it
        build.insert(3, "--no-build-isolation")
    _run(_started, build, place, _environment())
    (wheel,) = place.glob("odesteer_tl-*.whl")
    zipfile.ZipFile(wheel).extractall(place / "site-packages")
    return place / "site-packages"


@cache
def saved_model(family: str) -> str:
    """The folder of a random model (models.py) and its tokenizer; client and server name the model by it."""
    folder = str(Path(_place().name) / family)
    models.hugging_face(family).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


def client(script: str, folder: Path, *arguments: object, preamble: str = PREAMBLE, timeout: float = 900) -> dict:
    """Run a script (sys.argv: the arguments) as a user of the wheel in that folder; return what it reports last."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "script.py"
        path.write_text(preamble + textwrap.dedent(script), encoding="utf-8")
        output = script_output([path, *arguments], place, timeout, PYTHONPATH=str(folder))
    return json.loads(output.splitlines()[-1])


def script_output(command: list, folder: str | Path, timeout: float = 300, **environment: str) -> str:
    """What a script [path, *arguments] prints, in a process of its own forked from one that has torch and nnsight."""
    return _run(_warm_python().start, command, folder, _environment(HF_HUB_OFFLINE="1", **environment), timeout)


def _environment(**own: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("NDIF_", "NNSIGHT_", "PYTHONPATH"))} | own


def _run(start: Callable, command: list, folder: str | Path, environment: dict[str, str], timeout: float = 900) -> str:
    """What the command prints. AssertionError, with what it says on standard error, if it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors, open(os.devnull) as nothing:
        streams = nothing.fileno(), output.fileno(), errors.fileno()
        process = start([str(part) for part in command], environment, folder, *streams)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        said = output.read()
        assert code == 0, f"{said}\n{errors.read()}"
    return said
