"""The tests' own server does what nnsight does locally, refuses what NDIF refuses, and fails as it is told."""

import json
import sys
import urllib.request

import pytest
from server_clients import client, installed_wheel, saved_model, serving
from server_clients import server as lasting

MEASURE = """
    found = {}
    families = [load(folder) for folder in sys.argv[2:]]
    torch.manual_seed(0)
    v = torch.randn(32)

    def largest(a, b):
        return float((a - b).abs().max())

    for name, model in zip(("llama", "gpt2"), families):
        layers = model.model.layers if name == "llama" else model.transformer.h
        plain, traced, said = [], [], []
        for remote in (False, sys.argv[1]):
            with model.trace("the film is good", remote=remote):
                clean = nnsight.save(model.lm_head.output)
            with model.trace("the film is good", remote=remote):
                layers[1].output = layers[1].output + v
                logits = nnsight.save(model.lm_head.output)
            with model.generate(max_new_tokens=5, min_new_tokens=5, do_sample=False, remote=remote) as tracer:
                with tracer.invoke("the film is good"):
                    last = nnsight.save([])
                    for _ in tracer.iter[:]:
                        layers[1].output = layers[1].output + v
                        last.append(model.lm_head.output[0, -1])
                with tracer.invoke():
                    ids = nnsight.save(tracer.result)
            plain, traced, said = plain + [clean], traced + [logits], said + [(ids, torch.stack(last))]
        found[name] = {
            "edit": largest(plain[0], traced[0]),
            "trace": largest(*traced),
            "steps": len(said[1][1]),
            "generate": largest(said[0][1], said[1][1]),
            "same_ids": said[0][0].equal(said[1][0]),
        }

    with model.session(remote=sys.argv[1]):
        with model.trace("the film is good"):
            first = model.transformer.h[0].output
        with model.trace("the film is good"):
            model.transformer.h[0].output = first + v
            second = nnsight.save(model.transformer.h[0].output)
    with model.trace("the film is good"):
        alone = nnsight.save(model.transformer.h[0].output)
    found["session"] = largest(second, alone + v)

    with model.trace("the film is good", remote=sys.argv[1], blocking=False) as polled:
        late = nnsight.save(model.lm_head.output)
    while (saves := polled.backend()) is None:
        pass
    found["polled"] = largest(saves["late"], plain[0])
    report(**found)
"""

REFUSE = """
    import dataclasses, os.path, time, urllib.request
    from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES
    from odesteer_tl import integrate
    _PICKLE_BY_VALUE_MODULES.difference_update({name for name in _PICKLE_BY_VALUE_MODULES if "odesteer_tl" in name})

    model, found = load(sys.argv[2]), {}

    @dataclasses.dataclass
    class Shift:
        by: float

    def plain(h):
        import math
        import torch.nn.functional
        time.strptime("2025", "%Y")  # imports _strptime, from C
        return h * math.sqrt(4.0)

    def holding(h):
        return h * len(os.environ)

    def importing(h):
        import os
        return h * len(os.environ) * len(__name__)  # which the server has a module for, too

    def dunder(h):
        return h * len(__import__("os").environ)

    def spying(h):
        lines = torch.fx.graph_module.linecache.getlines(integrate_file)
        return h * len(lines)

    integrate_file = integrate.__code__.co_filename
    assert spying(1)
    shift = Shift(2.0)

    def by_reference(h):
        return integrate(h)

    def in_the_block():
        with model.trace("the film", remote=sys.argv[1]):
            import os
            x = nnsight.save(model.lm_head.output * len(os.environ))
        return x

    def with_instance():
        with model.trace("the film", remote=sys.argv[1]):
            x = nnsight.save(model.lm_head.output * shift.by)
        return x

    def run(f=lambda h: h):
        with model.trace("the film", remote=sys.argv[1]):
            x = nnsight.save(f(model.lm_head.output))
        return x

    def outcome(what, *arguments):
        try:
            return ["", float(what(*arguments).abs().sum())]
        except Exception as error:
            return [type(error).__name__, str(error)]

    found["plain"] = outcome(run, plain)
    found["by_reference"] = outcome(run, by_reference)
    found["instance"] = outcome(with_instance)
    found["holding"] = outcome(run, holding)
    found["importing"] = outcome(run, importing)
    found["in_the_block"] = outcome(in_the_block)
    found["dunder"] = outcome(run, dunder)
    found["spying"] = outcome(run, spying)
    for kind in ("error", "drop", "close", "refuse", "drop_result"):
        urllib.request.urlopen(sys.argv[1] + "/fault", json.dumps({"kind": kind}).encode())
        found[kind] = outcome(run)
    found["after"] = outcome(run)
    report(**found)
"""


LENIENT = ["plain", "instance", "holding", "importing", "in_the_block", "dunder"]


@pytest.fixture(scope="module")
def server():
    return lasting()


@pytest.fixture(scope="module")
def measured(server):
    return client(MEASURE, installed_wheel(), server.url, saved_model("llama"), saved_model("gpt2"))


@pytest.fixture(scope="module")
def outcomes(server):
    return client(REFUSE, installed_wheel(), server.url, saved_model("llama"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_remote_equals_local(measured, family):
    found = measured[family]
    assert found["edit"] > 0.1 and found["steps"] == 5
    assert found["trace"] < 1e-5 and found["generate"] < 1e-5 and found["same_ids"]


def test_sessions_and_polled_jobs(measured):
    assert measured["session"] < 1e-5
    assert measured["polled"] < 1e-5


def test_the_latest_request_is_described(measured, server):
    before = server.last()
    assert "gpt2" in before["model_key"] and before["bytes"] > 500 and before["nnsight_version"].startswith("0.")
    with urllib.request.urlopen(server.url + "/env") as answer:
        env = json.load(answer)
    assert env["python_version"] == sys.version and "torch" in env["packages"] and "odesteer_tl" not in env["packages"]


def test_it_refuses_what_ndif_refuses(outcomes):
    assert outcomes["plain"][0] == ""
    for name, reason in {
        "by_reference": "ModuleNotFoundError: No module named 'odesteer_tl'",
        "instance": "ImportError: Module dataclasses is not whitelisted",
        "holding": "ImportError: Module os is not whitelisted",
        "importing": "ImportError: Module os is not whitelisted",
        "in_the_block": "ImportError: Module os is not whitelisted",
        "dunder": "ImportError: Module os is not whitelisted",
    }.items():
        assert outcomes[name][0] == "RemoteError" and reason in outcomes[name][1], name


def test_it_does_not_read_the_clients_files(outcomes):
    assert outcomes["spying"] == ["", 0.0]


def test_faults_reach_the_client(outcomes):
    kind, text = outcomes["error"]
    assert kind == "RemoteError" and text.startswith("Traceback") and "RuntimeError: a fault on demand" in text
    kind, text = outcomes["refuse"]
    assert kind == "RemoteError" and "nnsight 0.7 required, got 0." in text
    assert outcomes["drop"][0] == "WebSocketConnectionClosedException"
    assert outcomes["close"][0] == "ValidationError"  # pydantic's: nnsight reads the empty message as a status
    assert outcomes["drop_result"][0] == "UnboundLocalError"
    assert outcomes["after"][0] == "" and outcomes["after"][1] > 0


def test_leniently_it_refuses_only_what_it_cannot_find():
    with serving("--lenient") as server:
        outcomes = client(REFUSE, installed_wheel(), server.url, saved_model("llama"))
    assert [outcomes[name][0] for name in LENIENT] == [""] * len(LENIENT)
    assert "No module named 'odesteer_tl'" in outcomes["by_reference"][1]


def test_it_ends_with_its_standard_input():
    with serving(warm=False) as server:
        assert server.process.poll() is None
        server.stdin.close()
        assert server.process.wait(20) == 0
