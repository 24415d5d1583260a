"""A check is the same in every library and on a server; its AUC is scikit-learn's on activations of a plain hook."""

import json
import random
from functools import cache

import pytest
import torch
from models import EVERY, hugging_face, load, tokenizer
from server_clients import client, installed_wheel, saved_model, server
from sklearn.metrics import roc_auc_score

import odesteer_tl as ot
from odesteer_tl.evaluation.data_check.near_duplicates import near
from odesteer_tl.evaluation.data_check.rankings import folds_of_units

MIDDLE = "the a film plot is was we saw it and but truly".split()
OPTIONS = {"method": ot.CAA, "layers": [0, 1], "positions": ["last", "mean"], "prepend_bos": True, "progress": False}


@cache
def sides() -> tuple[list[str], list[str]]:
    """Twelve texts a side of ten words each, the last of which leans to a side."""
    chance, found = random.Random(0), []
    for good, bad in (("great", "slow"), ("slow", "great")):
        ends = [good if chance.random() < 0.8 else bad for _ in range(12)]
        found.append([" ".join([*chance.choices(MIDDLE, k=9), end]) for end in ends])
    assert not near(found[0] + found[1])
    return found[0], found[1]


@cache
def of(kind: str) -> ot.DataCheck:
    return ot.check_data(load(kind, "llama"), *sides(), **OPTIONS)


@pytest.mark.parametrize("kind", EVERY)
def test_a_check_is_that_of_a_plain_model_in_every_library(kind):
    found, plain = of(kind), of("huggingface")
    assert [item.name for item in found.items] == [item.name for item in plain.items]
    assert {one.name: one.verdict for one in found.items} == {one.name: one.verdict for one in plain.items}
    assert [area.name for area in found.areas] == [area.name for area in plain.areas] and found.best == plain.best
    assert [area.auc for area in found.areas] == pytest.approx([area.auc for area in plain.areas], abs=0.02)
    assert {(odd.side, odd.row) for odd in found.texts} == {(odd.side, odd.row) for odd in plain.texts}


def test_the_auc_is_that_of_activations_of_a_torch_hook():
    """At layer 1, the last token, by the difference of means in the same folds."""
    model, words, rows = hugging_face("llama"), tokenizer(), []
    for text in [*sides()[0], *sides()[1]]:
        kept = []
        handle = model.model.layers[1].register_forward_hook(
            lambda module, given, out, kept=kept: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        ids = [words.bos_token_id, *words(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            model(torch.tensor([ids]))
        handle.remove()
        rows.append(kept[0][0, -1].double())
    rows, labels = torch.stack(rows), torch.arange(24) < 12
    areas = []
    for fit, held in folds_of_units(12, list(range(24)), 0):
        way = rows[fit & labels].mean(0) - rows[fit & ~labels].mean(0)
        high, low = int((held & labels).sum()), int((held & ~labels).sum())
        area = roc_auc_score(labels[held].numpy(), (rows[held] @ way).numpy())
        areas.append(area * (high / 12 + low / 12) / 2)
    (found,) = [area.auc for area in of("huggingface").areas if area.name == "h at layer 1, last"]
    assert found == pytest.approx(sum(areas), abs=1e-6)


CHECKED = """
    import odesteer_tl as ot

    url, model, sides = sys.argv[1], load(sys.argv[2]), json.loads(sys.argv[3])
    given = {"method": ot.CAA, "layers": [0, 1], "positions": ["last", "mean"], "prepend_bos": True, "progress": False}
    here, there = (ot.check_data(model, *sides, remote=remote, **given) for remote in (False, url))
    refused = None
    try:
        ot.check_data(model, *sides, remote="http://127.0.0.1:9", **given)
    except ConnectionError as error:
        refused = str(error)
    report(here=json.loads(here.to_json()), there=json.loads(there.to_json()), refused=refused)
"""


def test_a_check_on_a_server_is_that_of_this_machine():
    """The client is a user of the wheel; only activations come back, and the baselines are counted at home."""
    found = client(CHECKED, installed_wheel(), server().url, saved_model("llama"), json.dumps(sides()))
    here, there = found["here"], found["there"]
    assert {item["name"]: item["verdict"] for item in here["items"]} == {
        item["name"]: item["verdict"] for item in there["items"]
    }
    for ours, theirs in zip(here["areas"], there["areas"], strict=True):
        assert ours["name"] == theirs["name"] and theirs["auc"] == pytest.approx(ours["auc"], abs=1e-6)
    plain = {area.name: area.auc for area in of("huggingface").areas}
    assert {area["name"]: area["auc"] for area in there["areas"]} == pytest.approx(plain, abs=0.02)
    assert found["refused"]


def test_another_library_is_refused_a_server():
    with pytest.raises(ValueError, match="remote=True needs an nnsight model"):
        ot.check_data(load("huggingface", "llama"), *sides(), remote="http://127.0.0.1:9", **OPTIONS)
