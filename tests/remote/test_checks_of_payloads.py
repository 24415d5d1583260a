"""Laws of sending: a method steers on a strict server that has nothing of this package, or is refused at home.

`sender.py` is the client and `strict_server.py` the server, each in a process of its own.
"""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from instances import ALL_METHODS, D_MODEL, planted
from nnsight.intervention import serialization
from server_clients import script_output

import odesteer_tl as ot
from odesteer_tl.evaluation.contrasts.axis import Axis
from odesteer_tl.portable.methods import PortableMethod
from odesteer_tl.remote.checks import sent_by_nnsight

HERE = Path(__file__).parents[1]


def run(script: str, payload: Path, path: str) -> dict:
    """A script in a process of its own, without the import hook of the tests."""
    return json.loads(script_output([HERE / script, payload], HERE, PYTHONPATH=path).splitlines()[-1])


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> dict:
    payload = tmp_path_factory.mktemp("sent") / "payload"
    return {**run("sender.py", payload, str(HERE.parent)), "payload": payload}


@pytest.fixture(scope="module")
def server(client) -> dict:
    return run("strict_server.py", client["payload"], "")


@pytest.mark.parametrize("kind", ["steer", "edits"])
def test_a_strict_server_without_the_package_steers_as_the_client(server, kind):
    assert server["types"] == [PortableMethod.__name__]
    assert set(server[kind]) > set(ALL_METHODS) | {"own-plain", "own-with-grad", "own-network", "own-holding"}
    for name, off in server[kind].items():
        assert off <= (1e-12 if name.endswith("float64") else 1e-5), name


def test_a_strict_server_chooses_the_same_tokens(server):
    assert len(server["chosen"]) == 8 and all(server["chosen"].values())


def test_a_strict_server_measures_what_steering_does(server):
    assert len(server["effects"]) == 3 and max(server["effects"]) <= 1e-5


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dataclass", "no module dataclasses"),
        ("importing", "`value` imports sklearn.preprocessing"),
        ("module", "uses the module sklearn"),
        ("name", "uses the module functools"),
        ("executed", "source cannot be found"),
        ("super", r"`value` calls super\(\)"),
        ("ours", "needs odesteer_tl.flows.barriers.LogRatioBarrier"),
        ("unpicklable", "cannot pickle 'generator'"),
    ],
)
def test_a_barrier_that_would_not_arrive_is_refused_before_it_is_sent(client, server, name, why):
    assert re.search(why, client["refused"][name])
    if name not in ("unpicklable", "executed"):  # bytecode would run on the same Python
        assert server["failures"][name], "the refusal is needless: it runs on a strict server"


def test_a_plain_barrier_of_the_users_is_not_refused(client):
    assert set(client["passed"].values()) == {""}
    assert client["untouched"]


def test_other_picklers_keep_the_method(client):
    assert client["trip"] == ["CAA"] * 4
    assert client["copied"] == "CAA CAA"


def test_payloads_are_small(client):
    """12 kB of source and of the paths of its files, long on some machines; a d_model of 24 makes few numbers."""
    sizes = client["bytes"]
    assert 4_000 < sizes["caa"] < 12_500
    assert sizes["caa"] < sizes["odesteer"] < sizes["caa"] + 4 * (D_MODEL**2 + 2 * D_MODEL + 2) + 2_000


def test_nobody_is_sending_here():
    assert not sent_by_nnsight()


def test_what_holds_no_method_is_refused_by_what_it_holds():
    """A check of data and a contrast have no method to name."""
    check = ot.DataCheck((), (), (), (2, "last"), (8, 8))
    axis = Axis("a", "is b", "is c")
    for holding, said in (
        (check, r"A DataCheck is not sent .* best = check\.best, and its numbers too"),
        (ot.Contrast(axis, (), (), (), True, False, "w"), r"A Contrast is not sent .* texts = found\.texts"),
    ):
        with pytest.raises(ValueError, match=said):
            serialization.dumps({"found": holding})
        assert pickle.loads(pickle.dumps(holding)).__dict__ == holding.__dict__


@pytest.mark.parametrize(("name", "usual"), [("LayerChoice", "choice"), ("Calibration", "calibration")])
def test_what_holds_a_method_is_refused_in_a_remote_trace_and_pickled_elsewhere(name, usual):
    acts = planted()
    method = ot.CAA.fit(acts)
    holding = {
        "LayerChoice": ot.LayerChoice(4, "last", method, acts, (), 0.1, 1.0),
        "Calibration": ot.Calibration(method, ot.Strength(1.0), "T", 0.1, 0.1, True, True, (), None, 10, 3, 1.0),
    }[name]
    with pytest.raises(ValueError, match=f"A {name} is not sent .* method = {usual}.method"):
        serialization.dumps({"found": holding})
    kept = pickle.loads(pickle.dumps(holding))
    assert type(kept) is type(holding) and torch.equal(kept.method.barrier.weight, method.barrier.weight)
