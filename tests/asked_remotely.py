"""Calls that ask a server, each with what an honest one sends back and what is then returned."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import nnsight
import torch
from torch import Tensor

import odesteer_tl as ot
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.parity.models import saved
from odesteer_tl.parity.oracle import activations
from odesteer_tl.portable.nnsight.gather import averaged_at, picked_at

IDS = [[1, 5, 6, 7], [1, 9, 4]]
TEXTS = ot.Tokenised(torch.tensor([[1, 5, 6, 7], [0, 1, 9, 4]]), torch.tensor([[True] * 4, [False] + [True] * 3]))
LAYERS, NEW = [0, 1], 5


class Asked(NamedTuple):
    """`call(remote)`: what is returned, as a list of tensors; `saves`: what an honest server sends back to each."""

    call: Callable[[Any], list[Tensor]]
    saves: dict[str, Any]
    right: list[Tensor]


@cache
def model() -> Any:
    return ot.load_model(saved("llama"), library="nnsight")


def collected(position: Any) -> Asked:
    """Both sides are the same texts, so that one reply is right for both requests."""

    def call(remote: Any) -> list[Tensor]:
        found = ot.collect_layers(model(), TEXTS, TEXTS, LAYERS, position=position, remote=remote)
        return [side for acts in found for side in (acts.desired, acts.undesired)]

    right = call(False)
    inputs = torch.tensor([IDS[0], [*IDS[1], 0]])  # pads on the right, as they are sent
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with model().trace(input_ids=inputs, attention_mask=mask):
        if position == "mean":
            values = nnsight.save(averaged_at(model(), None, LAYERS, "resid_post", mask.bool(), mask.bool(), False))
        else:
            rows, columns = torch.tensor([0, 1]), torch.tensor([3, 2])
            if position == "all":
                rows, columns = mask.nonzero(as_tuple=True)
            values = nnsight.save(picked_at(model(), None, LAYERS, "resid_post", rows, columns))
    return Asked(call, {"values": [(a.detach(), n.detach()) for a, n in values]}, right)


def generated(steered: bool) -> Asked:
    acts = activations("llama")
    method, T = (ot.CAA.fit(acts), 0.3 * acts.origin.typical_norm) if steered else (None, None)
    said: list[Any] = []

    def call(remote: Any) -> list[Tensor]:
        found = ot.generate(model(), TEXTS, method, T, layer=1 if steered else None, max_new_tokens=NEW, remote=remote)
        said[:] = [found]
        counts = [] if found.report is None else sorted(found.report.tokens_steered.items())
        return [found.tokens, found.mask, torch.tensor(counts)]

    right = call(False)
    report = {} if said[0].report is None else dict(said[0].report.tokens_steered)
    return Asked(call, {"tokens": said[0].tokens, "steered": report}, right)


def measured() -> Asked:
    """What two strengths do to the texts, of which the last three tokens are steered."""
    acts, words = activations("llama"), torch.tensor([4, 6, 9])
    method, T = ot.CAA.fit(acts), 0.3 * acts.origin.typical_norm

    def call(remote: Any) -> list[Tensor]:
        rows = [torch.tensor(row) for row in IDS]
        texts = SteeredTexts.given(model(), rows, torch.tensor([2, 1]), remote=remote)
        found = texts.effects(lambda value: [(method, ot.Strength(value))], [T, 2 * T], 9, words)
        return [found.costs, found.gains, found.lifts[:, words]]

    costs, gains, lifts = right = call(False)
    return Asked(call, {"found": (costs, gains, lifts * 6), "steered": {1: 2 * 6}}, right)


@cache
def asked(name: str) -> Asked:
    """One of `NAMES`."""
    if name == "measured":
        return measured()
    return generated(name == "steered") if name in ("steered", "plain") else collected(name)


NAMES = ["last", "mean", "all", "steered", "plain", "measured"]
