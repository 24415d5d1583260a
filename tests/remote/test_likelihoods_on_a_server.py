"""Log-likelihoods from a server are those of this machine; a server that answers something else is refused.

The client is a user of the built wheel; the server has not this package.
"""

import pytest
from server_clients import client, installed_wheel, saved_model, server

ASK = """
    import odesteer_tl as ot
    from odesteer_tl.backends.likelihoods import likelihoods
    from odesteer_tl.backends.nnsight import measures, replies, server_errors
    from odesteer_tl.backends.tokenize import left_padded
    from odesteer_tl.parity import table

    url, model = sys.argv[1], load(sys.argv[2])
    texts = left_padded([[1, 5, 6, 7, 9, 10, 11], [1, 5, 6, 7], [1, 8, 4, 9], [1, 8, 4, 12]], 0)
    lengths = torch.tensor([5, 1, 3, 3])
    rows, sizes, found = table.parity_rows(), [], {}

    class Counting(server_errors.ServerRequest):
        def finalize(self, content):
            sizes.append(len(content))
            return super().finalize(content)

    server_errors.ServerRequest = Counting
    for name in ("CAA", "ODESteer", "A-LQR", "ITI, heads", "TruthFlow", None):
        for rule in ("decoding", "generated"):
            made = name and rows[name]("llama")
            given = {"method": made, "T": made and 0.5 * made.usual_T, "positions": rule, "batch_size": 2}
            here, there = (likelihoods(model, texts, lengths, remote=remote, **given) for remote in (False, url))
            found[f"{name} {rule}"] = {
                "off": max(float((a - b).abs().max()) for a, b in zip(here.tokens, there.tokens)),
                "greedy": all(torch.equal(a, b) for a, b in zip(here.greedy, there.greedy)),
                "steered": [here.steered.tolist(), there.steered.tolist()],
            }
    found["most bytes"] = max(sizes)

    refusals = {}
    spoiled = {
        "few": lambda p, best: (p[1:], best[1:]), "above": lambda p, best: (p + 9, best),
        "nan": lambda p, best: (p * float("nan"), best), "long": lambda p, best: (p, best.long()),
        "half": lambda p, best: p,
    }
    for name, spoil in spoiled.items():
        made = replies.likelihoods_in
        measures.likelihoods_in = lambda value, count, refused: made(spoil(*value), count, refused)
        try:
            likelihoods(model, texts, lengths, remote=url)
        except RuntimeError as error:
            refusals[name] = str(error)
    measures.likelihoods_in = made
    counted = measures.report_in
    measures.report_in = lambda value, *how: counted({layer: 0 for layer in value}, *how)
    try:
        likelihoods(model, texts, lengths, rows["CAA"]("llama"), 1.0, remote=url)
    except RuntimeError as error:
        refusals["unsteered"] = str(error)
    report(refusals=refusals, **found)
"""


@pytest.fixture(scope="module")
def found():
    return client(ASK, installed_wheel(), server().url, saved_model("llama"))


@pytest.mark.parametrize("rule", ["decoding", "generated"])
@pytest.mark.parametrize("name", ["CAA", "ODESteer", "A-LQR", "ITI, heads", "TruthFlow", None])
def test_they_are_those_of_this_machine(found, name, rule):
    measured = found[f"{name} {rule}"]
    here, there = measured["steered"]
    assert measured["off"] <= 1e-4 and measured["greedy"] and here == there
    assert here == ([0, 0, 0, 0] if name is None else [2, 3, 1, 1] if rule == "decoding" else [1, 2, 0, 0])


def test_no_logits_are_sent_back(found):
    assert found["most bytes"] < 5000


@pytest.mark.parametrize("name", ["few", "above", "nan", "long", "half", "unsteered"])
def test_another_reply_is_refused(found, name):
    assert "sent back" in found["refusals"][name]
