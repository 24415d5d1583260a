"""Both harnesses on a server without this package (nnsight, as NDIF runs it): answers are those of this machine."""

import json
import os
import subprocess
import sys

import pytest
from server_clients import client, installed_wheel, saved_model, server

ASK = """
    from types import SimpleNamespace
    from odesteer_tl.integrations.lm_eval import ODESteerLM
    from odesteer_tl.parity import table

    url, model = sys.argv[1], load(sys.argv[2])
    method = table.parity_rows()["ODESteer"]("llama")
    asked = lambda *all: [SimpleNamespace(args=args, task_name="mine") for args in all]
    pairs = [("the film is", " good"), ("we saw it and", " it was slow"), ("", "a plot")]
    found = {"here": {}, "there": {}}
    for name, remote in (("here", False), ("there", url)):
        lm = ODESteerLM(model, method, kl=0.05, remote=remote, batch_size=2)
        said = found[name]
        said["pairs"] = lm.loglikelihood(asked(*pairs))
        said["rolling"] = lm.loglikelihood_rolling(asked(("the film is good",)))
        until = {"until": ["slow"], "max_gen_toks": 20}
        said["texts"] = lm.generate_until(asked(*((text, until) for text, _ in pairs)))
        said["info"] = lm.get_model_info()["odesteer"]
    report(**found)
"""
CHAT = """
import asyncio, json, sys
from odesteer_tl.integrations.inspect import ODESteerAPI
from inspect_ai.model import GenerateConfig, get_model
import odesteer_tl as ot
from odesteer_tl.parity import table

model = ot.load_model(sys.argv[2], library="nnsight")
method, found = table.parity_rows()["ODESteer"]("llama"), {}
for name, remote in (("here", False), ("there", sys.argv[1])):
    chat = get_model("odesteer/mine", loaded=model, method=method, relative_T=0.3, remote=remote, memoize=False)
    answer = asyncio.run(chat.generate("the film is", config=GenerateConfig(max_tokens=6, logprobs=True)))
    logprobs = [one.logprob for one in answer.choices[0].logprobs.content]
    found[name] = [answer.completion, answer.metadata["odesteer"]["tokens_steered"], logprobs]
print(json.dumps(found))
"""


def script(text, *arguments):
    """What a new Python says, that has the wheel: nnsight comes after Inspect, as it has to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NDIF_", "NNSIGHT_"))}
    environment |= {"PYTHONPATH": str(installed_wheel()), "HF_HUB_OFFLINE": "1", "NNSIGHT_CONFIG": "none"}
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=installed_wheel())


@pytest.fixture(scope="module")
def found():
    return client(ASK, installed_wheel(), server().url, saved_model("llama"))


def test_lm_evals_answers_are_those_of_this_machine(found):
    here, there = found["here"], found["there"]
    assert [one for _, one in here["pairs"]] == [one for _, one in there["pairs"]] and here["texts"] == there["texts"]
    assert [value for value, _ in there["pairs"]] == pytest.approx([value for value, _ in here["pairs"]], abs=1e-3)
    assert there["rolling"] == pytest.approx(here["rolling"], abs=1e-3)
    assert there["info"]["strength"][0]["relative_T"] == pytest.approx(
        here["info"]["strength"][0]["relative_T"], rel=1e-3
    )
    assert there["info"]["remote"] and not here["info"]["remote"]
    assert there["info"]["tokens_steered"] == here["info"]["tokens_steered"] > 0
    assert there["info"]["requests_without_steering"] == 0


def test_inspects_answers_are_those_of_this_machine():
    said = script(CHAT, server().url, saved_model("llama"))
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    assert found["there"][:2] == found["here"][:2] and found["here"][1] > 1
    assert found["there"][2] == pytest.approx(found["here"][2], abs=1e-3)


def test_nnsight_before_inspect_is_told_apart():
    said = script("import nnsight, odesteer_tl.integrations.inspect")
    assert said.returncode == 1 and "above the first import of nnsight" in said.stderr.splitlines()[-1]
