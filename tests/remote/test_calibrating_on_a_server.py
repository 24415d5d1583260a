"""Laws of strengths and layers that are found on a server: they are those of this machine, and cost what a hook says.

The client is a user of the built wheel; the server has neither this package nor what the client knows.
"""

import pytest
from server_clients import client, installed_wheel, saved_model, server

FIND = """
    import urllib.request, warnings
    import odesteer_tl as ot
    from odesteer_tl.backends.nnsight import server_errors
    from odesteer_tl.evaluation.divergence import SteeredTexts
    from odesteer_tl.parity import oracle, table

    url, model = sys.argv[1], load(sys.argv[2])
    rows, prompts = table.parity_rows(), ["the film", "a plot is good and", "it"]
    made = {name: rows[name]("llama") for name in ("CAA", "ODESteer", "MiMiC", "A-LQR", "S-PID", "ITI, heads")}
    sizes = []

    class Counting(server_errors.ServerRequest):
        def finalize(self, content):
            sizes.append(len(content))
            return super().finalize(content)

    server_errors.ServerRequest = Counting

    def last():
        with urllib.request.urlopen(url + "/last") as answer:
            return json.load(answer)

    def hooked(texts, where, first=None):
        '''KL at every steered token, row by row, by torch hooks on the plain model.'''
        found = []
        for tokens, mask, prompt in zip(texts.tokens, texts.mask, texts.prompt_lengths.tolist()):
            row = tokens[mask].tolist()
            at = range(prompt - 1 if first is None else first, len(row))
            p = oracle.logits("llama", row, (), ())[list(at)].double().softmax(-1)
            q = oracle.logits("llama", row, where, at)[list(at)].double().softmax(-1)
            found.append((p * (p / q).log()).sum(-1))
        return torch.cat(found)

    def places(method, value):
        if not isinstance(method, list):
            return oracle.places(method, value)
        return [place for part, T in method for place in oracle.places(part, T * value)]

    pair = [(made["CAA"], 0.3 * made["CAA"].usual_T), (made["ODESteer"], 0.5 * made["ODESteer"].usual_T)]
    budgets = {"CAA": 0.05, "ODESteer": 0.05, "MiMiC": 0.05, "A-LQR": 0.3, "S-PID": 0.3, "ITI, heads": 0.05}
    found, texts = {}, ot.generate(model, prompts, max_new_tokens=5)
    for name, kl in {**budgets, "a list": 0.05}.items():
        method = pair if name == "a list" else made[name]
        relative = None if name == "a list" else False
        given = {"kl": kl, "relative": relative, "max_new_tokens": 5}
        here, there = (ot.calibrate(model, method, prompts, remote=remote, **given) for remote in (False, url))
        curves = [[(point.value, point.kl_mean, point.displacement) for point in each.curve] for each in (here, there)]
        found[name] = {
            "strengths": [here.strength.value, there.strength.value],
            "hook": float(hooked(texts, places(method, there.strength.value)).mean()), "spent": there.spent, "kl": kl,
            "curves": curves, "parts": len(getattr(there.method, "parts", [0])),
        }

    def caa(value):
        return [(made["CAA"], ot.Strength(value))]

    sizes.clear()
    words = torch.tensor([5, 9, 3])
    for name in ("CAA", "A-LQR", "S-PID"):  # loops steer at T = 0 too
        for rule, first in (("decoding", None), ("all", 0)):
            T = made[name].usual_T
            steered = SteeredTexts.of(model, texts, rule, remote=url)
            there = steered.effects(lambda value: [(made[name], ot.Strength(value))], [0.0, T], 9, words)
            costs = torch.stack([hooked(texts, oracle.places(made[name], value), first) for value in (0.0, T)])
            local = SteeredTexts.of(model, texts, rule)
            here = local.effects(lambda value: [(made[name], ot.Strength(value))], [0.0, T], 9, words)
            found[f"{name} {rule}"] = {
                "costs": float((there.costs - costs).abs().max()), "off": float(there.costs[0].max()),
                "gains": float((there.gains - here.gains).abs().max()), "gain": float(here.gains[1].abs().max()),
                "lifts": float((there.lifts - here.lifts)[:, words].abs().max()),
                "lift": float(here.lifts[1, words].abs().max()),
            }
    found["bytes"] = {"reply": max(sizes), "tokens": int(steered.named.sum())}
    ot.calibrate(model, made["CAA"], prompts, 0.05, remote=url, max_new_tokens=5)
    found["bytes"]["request"] = last()["bytes"]

    TEMPLATE = (
        "{% for message in messages %}<s> {{ 'it' if message['role'] == 'user' else 'we' }} {{ message['content'] }} "
        "{% endfor %}{% if add_generation_prompt %}the{% endif %}"
    )
    model.tokenizer.chat_template = TEMPLATE
    for name, given in {
        "chat": {"chat_template": True, "system": "never bad"}, "quantile": {"quantile": 0.9},
        "positions": {"positions": "all"}, "a slice": {"positions": slice(0, 2)}, "batches": {"batch_size": 5},
        "layer": {"layer": 0, "blocks": "model.layers"}, "no budget": {"kl": 0},
    }.items():
        given = {"kl": 0.05, "max_new_tokens": 5} | given
        here, there = (ot.calibrate(model, made["CAA"], prompts, remote=remote, **given) for remote in (False, url))
        found[name] = [here.strength.value, there.strength.value]
        assert here.method.prompts == there.method.prompts and here.method.layer == there.method.layer
        assert here.method.chat == there.method.chat == (name == "chat")
    model.tokenizer.chat_template = None

    heads = ["the film is", "a plot is", "we saw it and it was", "truly", "it is"]
    good = [f"{head} {word}" for word in ("great", "fine", "good", "never dull") for head in heads]
    bad = [f"{head} {word}" for word in ("bad", "dull", "slow", "never great") for head in heads]
    for name, given in {"CAA": {"method": ot.CAA}, "ODESteer": {"layers": [0, 1], "positions": "last"}}.items():
        here, there = (ot.choose_layer(model, good, bad, kl=0.05, seed=1, remote=remote, **given)
                       for remote in (False, url))
        found[f"layer, {name}"] = {
            "places": [(each.layer, each.position) for each in (here, there)],
            "shifts": [[(one.shift, one.shift_error) for one in each.candidates] for each in (here, there)],
            "strengths": [[one.strength and one.strength.value for one in each.candidates] for each in (here, there)],
        }
    report(**found)
"""


@pytest.fixture(scope="module")
def found():
    return client(FIND, installed_wheel(), server().url, saved_model("llama"))


@pytest.mark.parametrize("name", ["CAA", "ODESteer", "MiMiC", "A-LQR", "S-PID", "ITI, heads", "a list"])
def test_a_strength_is_that_of_this_machine_and_spends_what_a_hook_says(found, name):
    here, there = found[name]["strengths"]
    assert there == pytest.approx(here, rel=1e-3) and there > 0
    assert found[name]["hook"] == pytest.approx(found[name]["spent"], rel=1e-3)
    assert found[name]["spent"] == pytest.approx(found[name]["kl"], rel=0.051)
    assert found[name]["parts"] == {"a list": 2}.get(name, 1)
    for points in zip(*found[name]["curves"], strict=True):
        for one, other in zip(*points, strict=True):
            assert one is other is None or other == pytest.approx(one, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("rule", ["decoding", "all"])
@pytest.mark.parametrize("name", ["CAA", "A-LQR", "S-PID"])
def test_unsteered_is_unsteered_there_and_costs_are_those_of_hooks(found, name, rule):
    measured = found[f"{name} {rule}"]
    assert measured["costs"] <= 1e-4
    assert (measured["off"] > 0.01) == (name != "CAA")  # T = 0 turns a loop's aims to 0, and not the loop off
    assert measured["gain"] > 0.1 and measured["gains"] <= 1e-4
    assert measured["lift"] > 0.1 and measured["lifts"] <= 1e-4


@pytest.mark.parametrize("name", ["chat", "quantile", "positions", "a slice", "batches", "layer", "no budget"])
def test_it_is_told_what_it_is_told_here(found, name):
    here, there = found[name]
    assert there == pytest.approx(here, rel=1e-3) and (there > 0) == (name != "no budget")


@pytest.mark.parametrize("name", ["CAA", "ODESteer"])
def test_a_layer_is_that_of_this_machine(found, name):
    chosen = found[f"layer, {name}"]
    assert chosen["places"][0] == chosen["places"][1]
    pairs = list(zip(*chosen["shifts"], strict=True))
    assert sum(one[0] is not None for one, _ in pairs) >= 2
    for one, other in pairs:
        assert one == other or other == pytest.approx(one, abs=1e-4)
    for one, other in zip(*chosen["strengths"], strict=True):
        assert one is other is None or other == pytest.approx(one, rel=1e-3)


def test_no_logits_come_back(found):
    """Those of 23 tokens would be 4 kB at two strengths and a vocabulary of 24 words: 184 bytes a word."""
    assert found["bytes"]["tokens"] == 23
    assert found["bytes"]["reply"] < 2_000 and found["bytes"]["request"] < 45_000, found["bytes"]
