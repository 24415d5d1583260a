"""Attacks on saved folders: killed saves, savers and readers at once, flipped bits, changed trees.

Each function tries `number` cases, counts how they ended, and raises AssertionError, with the seed and the case, where
a promise is broken: a folder is read as what was saved, or refused by a ValueError.
"""

import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from instances import activations, fitted, planted
from safetensors.torch import load_file, save_file
from saved_folders import resealed, tensors_of

import odesteer_tl as ot

SAVER = """
import sys, torch, odesteer_tl as ot
width, folder = 4096, sys.argv[1]
def method(value):
    side = torch.full((2, width), float(value))
    return ot.CAA.fit(ot.ContrastiveActivations(side, torch.zeros(2, width), layer=value))
both = [method(1), method(9)]
print("ready", flush=True)
while True:
    for each in both:
        ot.save(each, folder)
"""
"""A process that saves two methods in turns, at layers 1 and 9, each with its layer as every number."""


def _saver(folder: Path) -> subprocess.Popen:
    started = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE)
    assert started.stdout is not None and started.stdout.readline() == b"ready\n"
    return started


def _whole(folder: Path) -> str:
    method = ot.load(folder)
    assert method.layer in (1, 9) and bool((method.barrier.weight == method.layer).all()), f"a mixture in {folder}"
    return f"layer {method.layer}"


def kills(number: int, seed: int = 0) -> Counter[str]:
    """A saver is killed at a random moment of its second save or a later one; what it leaves is one method, whole.

    Savers are forked from a small process without threads; each says when a save has ended, so that the moments are
    spread over its saves on any machine.
    """
    chance, counts = random.Random(seed), Counter[str]()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["odesteer_tl"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "method")
        for case in range(number):
            heard, said = processes.Pipe(duplex=False)
            saver = processes.Process(target=_save_in_turns, args=(folder, case % 2, said))
            saver.start()
            said.close()  # a saver that dies by itself is an EOFError here, and no wait for ever
            heard.recv()
            began = time.perf_counter()
            heard.recv()
            lasted = time.perf_counter() - began
            for _ in range(chance.randrange(2)):
                heard.recv()
            time.sleep(chance.uniform(0, lasted))
            saver.kill()
            saver.join()
            try:
                counts[_whole(folder)] += 1
            except (AssertionError, ValueError) as error:
                raise AssertionError(f"kills, seed {seed}, case {case}: {error}") from error
    return counts


def _save_in_turns(folder: Path, first: int, said: Connection) -> None:
    warnings.simplefilter("ignore")  # the rows of a side are the same on purpose
    both = [_constant(1), _constant(9)]
    while True:
        for each in (both[first], both[1 - first]):
            ot.save(each, folder)
            said.send(each.layer)


def _constant(value: int) -> ot.CAA:
    side = torch.full((2, 4096), float(value))
    return ot.CAA.fit(ot.ContrastiveActivations(side, torch.zeros(2, 4096), layer=value))


def loads(number: int, seed: int = 0) -> Counter[str]:
    """Two processes save two methods into one folder while it is read; each load is one of them, whole."""
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "method")
        ot.save(_constant(1), folder)
        savers = [_saver(folder) for _ in range(2)]
        try:
            for case in range(number):
                try:
                    counts[_whole(folder)] += 1
                except (AssertionError, ValueError) as error:
                    raise AssertionError(f"loads, case {case}: {error}") from error
        finally:
            for saver in savers:
                saver.kill()
                saver.wait()
    return counts


def flips(number: int, seed: int = 0) -> Counter[str]:
    """One bit of one file is another: the folder is refused, or was not changed in what it says (a blank, say)."""
    chance, counts = random.Random(seed), Counter[str]()
    names = ["caa", "odesteer", "mimic", "hpr"]
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            ot.save(fitted(name), Path(place, name))
        for case in range(number):
            name = chance.choice(names)
            folder = Path(place, name)
            file = chance.choice([folder / "config.json", tensors_of(folder)])
            before = file.read_bytes()
            at, bit = chance.randrange(len(before)), chance.randrange(8)
            file.write_bytes(before[:at] + bytes([before[at] ^ 1 << bit]) + before[at + 1 :])
            try:
                counts[_ended(folder, name, f"flips, seed {seed}, case {case}: {file.name} byte {at}")] += 1
            finally:
                file.write_bytes(before)
    return counts


def _ended(folder: Path, name: str, case: str) -> str:
    try:
        method = ot.load(folder)
    except ValueError as error:
        assert str(folder) in str(error), f"{case}: the folder is not named: {error}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    a, same = activations(3, dtype=torch.float32), fitted(name)
    equal = type(method) is type(same) and torch.equal(method.steer(a, T=1.0), same.steer(a, T=1.0))
    assert equal, f"{case}: read as another method"
    return "equal"


VALUES = (
    5, -1, 0, 10**9, 10**30, 0.5, 1e308, -0.0, True, None, "", "x", "euler", [], [1], {}, {"tensor": 3},
    {"tensor": "x"}, {"class": "CAA"}, {"class": "os.system"}, "blocks.x.hook_resid_post", [[[[]]]],
)  # fmt: skip


def folders(number: int, seed: int = 0) -> Counter[str]:
    """A tree or a tensor changed by someone who knows how digests are made: a ValueError, or something that is whole.

    What is read then may be another method, as its maker wanted; it steers, with finite numbers.
    """
    chance, counts = random.Random(seed), Counter[str]()
    names = ["caa", "iti", "odesteer", "mimic", "hpr", "truthflow", "recontrol", "acts"]
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            planted().save(Path(place, name)) if name == "acts" else ot.save(fitted(name), Path(place, name))
        for case in range(number):
            folder = Path(place, chance.choice(names))
            kept = {file: file.read_bytes() for file in folder.iterdir()}
            said = f"folders, seed {seed}, case {case} of {folder.name}"
            try:
                _change(folder, chance)
                counts[_tried(folder, said)] += 1
            finally:
                for file in folder.iterdir():
                    file.unlink()
                for file, data in kept.items():
                    file.write_bytes(data)
    return counts


def _change(folder: Path, chance: random.Random) -> None:
    file = tensors_of(folder)
    kind = chance.choice(["value", "value", "value", "gone", "more", "tensor", "tensor", "bytes", "text"])
    if kind == "tensor":
        tensors = load_file(file)
        name = chance.choice(sorted(tensors))
        tensor = tensors[name]
        others = (
            tensor[..., :0], tensor[None], tensor.flatten()[:1], tensor.double() * float("nan"), tensor.double(),
            tensor.double() * 1e200, tensor.bool(), tensor.half(), tensor.long(), torch.zeros(()),
            tensor.to(torch.complex64),
        )  # fmt: skip
        save_file(tensors | {name: chance.choice(others).clone().contiguous()}, file)
        resealed(folder)
    elif kind == "bytes":
        data = bytearray(file.read_bytes())
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
        file.write_bytes(bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
        resealed(folder)
    elif kind == "text":
        text = (folder / "config.json").read_text()
        at = chance.randrange(len(text))
        inner = chance.choice(["[" * 5000, '"', "NaN", "\x00", "é", "1e999", "{}", "9" * 5000, '"a":1,"a":2,'])
        (folder / "config.json").write_text(text[:at] + inner + text[at:])
    else:
        resealed(folder, lambda tree: _changed(tree, kind, chance))


def _changed(tree: dict, kind: str, chance: random.Random) -> None:
    nodes, found = [tree], []
    while nodes:
        node = nodes.pop()
        for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
            found.append((node, key))
            if isinstance(value, (dict, list)):
                nodes.append(value)
    node, key = chance.choice(found)
    if kind == "gone":
        del node[key]
    elif kind == "more" and isinstance(node, dict):
        node["more"] = chance.choice(VALUES)
    else:
        node[key] = json.loads(json.dumps(chance.choice(VALUES)))


def _tried(folder: Path, case: str) -> str:
    try:
        if folder.name == "acts":
            ot.ContrastiveActivations.load(folder)
            return "read"
        method = ot.load(folder)
    except ValueError as error:
        assert str(folder) in str(error), f"{case}: the folder is not named: {error}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    width = method.origin.d_model or activations(1).shape[-1]
    try:
        moved = method.steer(torch.ones(1, width), T=1.0)
    except Exception as error:
        raise AssertionError(f"{case}: loaded, and then {type(error).__name__}: {error}") from error
    assert bool(torch.isfinite(moved).all()), f"{case}: loaded, and not finite"
    return "read"
