"""A client: python sender.py PAYLOAD writes what nnsight would send, and prints what is refused, as JSON.

It runs in a process of its own: the import hook of the tests wraps functions, and so hides their source.
"""

import copy
import functools
import json
import math
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import instances
import nnsight
import sklearn.preprocessing
import torch
from instances import METHODS, UNITS, activations, fitted, strengths, taken
from nnsight.intervention.serialization import dumps

from odesteer_tl.methods import GradientFlow, Method
from odesteer_tl.portable.edits import State
from odesteer_tl.portable.nnsight.gather import effects_at
from odesteer_tl.portable.token_rules import chosen_by
from odesteer_tl.remote.checks import check_travels, payload_bytes
from odesteer_tl.remote.payloads import moved

nnsight.register(instances)


def bump(x):
    return torch.tanh(x) + math.pi


class Plain:
    """Only `value`, with numbers and a helper function."""

    def __init__(self, w):
        self.w = w

    @property
    def half(self):
        return 0.5 * self.w

    def value(self, a):
        return bump(a @ self.half)


class WithGrad(Plain):
    def grad(self, a):
        return (1 - torch.tanh(a @ self.half).square()).unsqueeze(-1) * self.half


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(24, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))

    def value(self, a):
        return self.layers(a).squeeze(-1)


class Holding:
    """A plain class around a module, as a reward model is."""

    def __init__(self):
        self.network = Network()

    def value(self, a):
        return self.network.value(a)


@dataclass
class Data:
    w: float = 1.0

    def value(self, a):
        return self.w * a[..., 0]


class Importing:
    def value(self, a):
        from sklearn.preprocessing import normalize

        return torch.as_tensor(normalize(a)).sum(-1)


class UsingModule:
    def value(self, a):
        return torch.as_tensor(sklearn.preprocessing.normalize(a)).sum(-1)


class UsingName:
    def value(self, a):
        return functools.reduce(torch.add, a.unbind(-1))


class Superior(Plain):
    def value(self, a):
        return super().value(a)


class HoldingOurs:
    def __init__(self):
        self.barrier = fitted("iti").barrier

    def value(self, a):
        return self.barrier.value(a).square()


class Unpicklable:
    def __init__(self):
        self.rows = (row for row in ())

    def value(self, a):
        return a[..., 0]


class Answered:
    """In place of a model in a trace: the logits of two texts, unsteered and at two strengths."""

    def __init__(self, logits):
        self.logits = logits

    @property
    def output(self):
        return self


class Copying:
    """Copies a method while nnsight pickles it: that copy is a method still."""

    def __reduce__(self):
        method = fitted("caa")
        return str, (f"{type(copy.deepcopy(method)).__name__} {type(copy.copy(method)).__name__}",)


made: dict = {"torch": torch, "__name__": "__main__"}
exec("class Executed:\n    def value(self, a):\n        return a[..., 0]", made)

torch.manual_seed(0)
w = torch.linspace(-1, 1, 24)
OWN = {
    "plain": Plain(w),
    "with-grad": WithGrad(w),
    "network": Network(),
    "holding": Holding(),
}
REFUSED = {
    "dataclass": Data(),
    "importing": Importing(),
    "module": UsingModule(),
    "name": UsingName(),
    "executed": made["Executed"](),
    "super": Superior(w),
    "ours": HoldingOurs(),
    "unpicklable": Unpicklable(),
}


def refusal(act):
    """The message of the ValueError that `act` raises, or "" where it raises none."""
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


def measured(logits, rows, columns, following, texts, words):
    """KL, gains and lifts, token by token in float64."""
    costs, gains, lifts = torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 2)
    for number in (0, 1):
        for token, (row, column, x) in enumerate(zip(rows.tolist(), columns.tolist(), following.tolist(), strict=True)):
            p = logits[row, column].double().softmax(-1)
            q = logits[(number + 1) * texts + row, column].double().softmax(-1)
            costs[number, token] = (p * (p / q).log()).sum()
            gains[number, row] += (q[x] / p[x]).log() if x >= 0 else 0
            lifts[number] += (q / p).log()[words]
    return costs.double(), gains.double(), lifts.double()


def main(target):
    methods: dict[str, Method] = {name: fitted(name) for name in METHODS}
    methods |= {f"own-{name}": GradientFlow(barrier, layer=3, solver="midpoint") for name, barrier in OWN.items()}
    doubled = ["odesteer", "odesteer-sketch", "odesteer-low-rank-rk4", "caa"]
    methods |= {f"{name}-float64": moved(methods[name], dtype=torch.float64) for name in doubled}
    rows = torch.tensor([2, 0, 0, 1])
    every = [{"T": 0.7}, {"relative_T": 0.3}, {"T": torch.tensor([1.0, -0.5, 2.0])}, {"T": 0}]
    steer, edits = [], []
    for name, method in methods.items():
        a = activations(3, 2, dtype=torch.float64 if name.endswith("float64") else torch.float32)
        known = name in UNITS
        given = strengths(name, *every) if known else every
        steer += [(name, a, strength, method.steer(a, **strength)) for strength in given]
        T = taken(name, torch.tensor([1.0, -0.5, 2.0])) if known else torch.tensor([1.0, -0.5, 2.0])
        (edit,) = method.edits(T=T)
        b = activations(4, dtype=a.dtype)
        edits.append((name, edit.write.name, b, rows, {"T": T}, edit.apply(b, b, State(rows))))
    index, lengths = torch.arange(-1, 7).repeat(3, 1), torch.tensor([2, 4, 7])
    mask = torch.rand(5, generator=torch.Generator().manual_seed(0)) < 0.5
    rules = ["decoding", "generated", "prompt", "all", slice(1, 6, 2), slice(2, None), mask, mask.expand(3, 5)]
    chosen = [(i, rule, index, lengths, chosen_by(rule, index, lengths)) for i, rule in enumerate(rules)]
    logits = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(1))
    where = torch.tensor([0, 0, 1]), torch.tensor([3, 4, 2]), torch.tensor([7, -1, 2]), 2, torch.tensor([8, 1])
    sent = {"methods": methods, "steer": steer, "edits": edits, "chosen": chosen}
    sent["effects"] = effects_at, Answered(logits), where, measured(logits, *where)
    raw = {name: dumps(barrier) for name, barrier in REFUSED.items() if name != "unpicklable"}
    target.write_bytes(dumps({**sent, "State": State, "chosen_by": chosen_by, "refused": raw}))

    before = OWN["network"].layers[0].weight.clone()
    methods["own-network"].portable().steer(activations(2), T=1.0)
    trip = [pickle.loads(pickle.dumps(fitted("caa"))), copy.deepcopy(fitted("caa")), copy.copy(fitted("caa"))]
    trip.append(cloudpickle.loads(cloudpickle.dumps(fitted("caa"))))

    return {
        "refused": {
            name: refusal(lambda barrier=barrier: dumps([GradientFlow(barrier, layer=3)]))
            for name, barrier in REFUSED.items()
        },
        "passed": {name: refusal(lambda barrier=barrier: check_travels(barrier)) for name, barrier in OWN.items()},
        "trip": [type(method).__name__ for method in trip],
        "copied": pickle.loads(dumps(Copying())),
        "bytes": {name: payload_bytes(method) for name, method in methods.items()},
        "untouched": OWN["network"].layers[0].weight.dtype == torch.float32
        and torch.equal(before, OWN["network"].layers[0].weight),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
