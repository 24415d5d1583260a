"""What the parity table believes of a server: logits as they were asked for, and no cell is good if one is altered.

The server is `hostile_server`'s, which sends what it is told; the honest reply is what this machine computes.
"""

import copy

import pytest
import torch
from asked_remotely import model
from hostile_server import Reply, hostile

from odesteer_tl.parity.oracle import STEPS, differences, places, steered_and_plain
from odesteer_tl.parity.run import in_graph, padded
from odesteer_tl.parity.table import Cell, faults, parity_rows

ROWS = [[1, 5, 6, 7], [1, 9, 4]]


@pytest.fixture(scope="module")
def server():
    with hostile() as running:
        yield running


@pytest.fixture(scope="module")
def honest():
    """The method, its T, and the reply of a server that does what it is asked to do."""
    method = parity_rows()["CAA"]("llama")
    new, logits = in_graph(model(), False)(ROWS, method, method.usual_T, True)
    sequences = torch.cat([padded(ROWS)[0], new], dim=1)
    return method, {"logits": list(logits.unbind(1)), "sequences": sequences}


def cell(server, honest, change=lambda saves: None):
    """The cell of the table where the server sends the honest reply with a change."""
    method, saves = honest[0], copy.deepcopy(honest[1])
    change(saves)
    server.reply = Reply(saves=saves)
    new, logits = in_graph(model(), server.url)(ROWS, method, method.usual_T, True)
    expected = steered_and_plain("llama", ROWS, new, places(method, method.usual_T))
    return Cell("nnsight remote", "CAA", "llama", "batch", True, *differences(logits, expected))


def test_an_honest_reply_makes_a_good_cell(server, honest):
    assert faults([cell(server, honest)]) == []


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("row", [0, 1])
def test_one_altered_logit_makes_a_bad_cell(server, honest, row, step):
    def alter(saves):
        saves["logits"][step][row, 7] += 1e-3

    assert len(faults([cell(server, honest, alter)])) == 1


def test_logits_of_an_unsteered_model_make_a_bad_cell(server, honest):
    plain = in_graph(model(), False)(ROWS, honest[0], 0.0, True)[1].unbind(1)
    assert len(faults([cell(server, honest, lambda saves: saves.update(logits=list(plain)))])) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits[:-1],
        lambda logits: [*logits, logits[0]],
        lambda logits: [*logits[:-1], logits[0][:1]],
        lambda logits: [*logits[:-1], logits[0][:, :-1]],
        lambda logits: [*logits[:-1], logits[0].double()],
        lambda logits: [*logits[:-1], logits[0].half()],
        lambda logits: [*logits[:-1], logits[0] * float("nan")],
        lambda logits: [*logits[:-1], logits[0] / 0],
        lambda logits: [*logits[:-1], "logits"],
        lambda logits: [*logits, "logits"],
        lambda logits: torch.stack(logits),
        lambda logits: {0: logits[0]},
        lambda logits: None,
    ],
)
def test_other_logits_than_were_asked_for_are_refused(server, honest, change):
    with pytest.raises(RuntimeError, match="sent back other logits than were asked for"):
        cell(server, honest, lambda saves: saves.update(logits=change(saves["logits"])))
