"""A remote server, as strict as NDIF: python strict_server.py PAYLOAD prints, as JSON, how far each case is off.

This package is not installed, a payload may name only the modules of nnsight's allow-list, and sent code may import
only those. The list is written down here again, so that a mistake in `odesteer_tl.remote.checks` shows.
"""

import builtins
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

RUNNING = {"builtins", "torch", "collections", "time", "numpy", "sympy", "nnterp", "math", "einops", "typing"}
RUNNING |= {"operator", "_operator", "pandas", "enum"}
LOADING = RUNNING | {"nnsight", "pickle", "cloudpickle", "copyreg", "types", "transformers", "_codecs"}


class Absent(MetaPathFinder):
    """Modules of the client that no server has."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in ("odesteer_tl", "instances", "sender"):
            raise ModuleNotFoundError(f"{fullname} is not installed on the server", name=fullname)


sys.meta_path.insert(0, Absent())

import nnsight  # noqa: E402, F401
import torch  # noqa: E402
from nnsight.intervention.serialization import CustomCloudUnpickler, loads  # noqa: E402


class Strict(CustomCloudUnpickler):
    def find_class(self, module, name):
        if module.split(".")[0] not in LOADING:
            raise ImportError(f"Module {module} is not whitelisted")
        return super().find_class(module, name)


ordinary_import = builtins.__import__


def guarded_import(name, globals=None, locals=None, fromlist=(), level=0):
    """Sent code runs in globals that have no name."""
    if (globals is None or "__name__" not in globals) and name.split(".")[0] not in RUNNING:
        raise ImportError(f"Module {name} is not whitelisted")
    return ordinary_import(name, globals, locals, fromlist, level)


def off(got, expected):
    """The largest distance of an activation from the expected one, relative to its length; inf for other types."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach().double(), expected.detach().double()
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def failure(payload):
    """How a barrier that was sent in spite of its refusal fails, "" if it does not."""
    try:
        loads(payload, unpickler=Strict).value(torch.ones(2, 24))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(payload):
    torch.set_num_threads(1)
    builtins.__import__ = guarded_import
    sent = loads(payload, unpickler=Strict)
    assert not any(name.split(".")[0] in ("odesteer_tl", "jaxtyping") for name in sys.modules)
    found = {"steer": {}, "edits": {}, "chosen": {}}
    found["types"] = sorted({type(method).__name__ for method in sent["methods"].values()})
    found["failures"] = {name: failure(each) for name, each in sent["refused"].items()}
    for name, a, strength, expected in sent["steer"]:
        got = sent["methods"][name].steer(a, **strength)
        found["steer"][name] = max(found["steer"].get(name, 0.0), off(got, expected))
    for name, site, a, rows, strength, expected in sent["edits"]:
        (edit,) = sent["methods"][name].edits(**strength)
        assert (edit.read.layer, edit.read.name, edit.write.layer, edit.write.name) == (3, site) * 2
        found["edits"][name] = off(edit.apply(a, a, sent["State"](rows)), expected)
    effects_at, model, where, expected = sent["effects"]
    found["effects"] = [off(*pair) for pair in zip(effects_at(model, *where), expected, strict=True)]
    for name, positions, index, lengths, expected in sent["chosen"]:
        found["chosen"][name] = torch.equal(sent["chosen_by"](positions, index, lengths), expected)
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).read_bytes())))
