"""Sweeps: killed and resumed, stopped, bounded, refused; the embedded model writes."""

import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import odesteer_tl as ot
from odesteer_tl.evaluation.sweeps.guardrails import broken, checked_bounds, repetition
from odesteer_tl.evaluation.sweeps.plan import Plan
from odesteer_tl.evaluation.sweeps.result import Sweep, SweptRow
from odesteer_tl.evaluation.sweeps.walk import walked

RUN = """
import os, signal, sys
from types import SimpleNamespace
import odesteer_tl as ot

def good(texts):
    return sum(text.count("good") + text.count("great") for text in texts) / len(texts)

def run(out, said=None, **other):
    demo = ot.load_demo()
    data = SimpleNamespace(desired=demo.desired[:12], undesired=demo.undesired[:12], prompts=demo.prompts[:2])
    options = dict(layers=[1, 3],
                   strengths={"CAA": (0.5, 2.0), "random": (0.1, 0.3)}, primary="good", metrics={"good": good},
                   keep=1, seeds=(0,),
                   samples=1, max_new_tokens=4, guardrails={"kl": (None, 9.0)})
    methods = {"CAA": ot.CAA, "random": ot.RandomDirection}
    return ot.sweep(demo.model, data, methods, out=out, progress=said, **options | other)
"""
KILL = """
seen = []
def said(text):
    seen.append(text)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
run(sys.argv[1], said)
"""


def test_a_killed_sweep_gives_the_same_table_and_another_protocol_is_refused(tmp_path):
    source = tmp_path / "asked.py"
    source.write_text(RUN + "\nif len(sys.argv) > 1 and sys.argv[0].endswith('asked.py'):\n" +
                      "\n".join("    " + line for line in KILL.strip().split("\n")))  # fmt: skip
    out = tmp_path / "killed"
    died = subprocess.run([sys.executable, str(source), str(out)], timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL
    lines = (out / "cells.jsonl").read_bytes()
    assert lines.count(b"\n") == 2  # screening is said too, and the third cell was begun
    (out / "cells.jsonl").write_bytes(lines + b'{"method": "CA')
    sys.path.insert(0, str(tmp_path))
    try:
        from asked import run  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(tmp_path))
    said = []
    resumed, whole = run(out, said.append), run(tmp_path / "whole")
    assert (out / "cells.jsonl").read_bytes() == (tmp_path / "whole" / "cells.jsonl").read_bytes()
    assert str(resumed) == str(whole) and resumed.to_json() == whole.to_json()
    assert len(said) == 1 + len(resumed.rows) - 2  # one seed: a cell a row, of which two were there
    with pytest.raises(ValueError, match=r"(?s)another protocol.*seeds: \[0\] in the folder, \[0, 1\] now"):
        run(out, seeds=(0, 1))
    assert "At most 5 cells" in str(run(None, dry_run=True))


PLAN = Plan(("m",), (1,), ("last",), {"m": (1.0,)}, ("kl",), "share", {}, (0,), 1, 2, 1, 4)


def row(strength, kl, *scores, bad=()):
    return SweptRow("m", 1, "last", "T", strength, {"kl": float(kl)}, [[float(one) for one in scores]], bad)


def test_the_walk_stops_where_a_guardrail_breaks_or_nothing_improves_twice():
    def walk(*levels, bad_at=None):
        start = row(0.0, 0.0, 0.0, 0.1)
        made = {float(i): row(float(i), 0.1, one, one + 0.1) for i, one in enumerate(levels)}
        return walked(start, list(made), lambda at: replace(made[at], broken=("kl 2 > 1",) if at == bad_at else ()))

    flat = walk(0.5, 0.5, 0.5, 0.9)
    assert [one.strength for one in flat] == [0, 1, 2] and "no improvement" in str(flat[-1].stop)
    assert [one.strength for one in walk(0.5, 0.5, 0.7, 0.7)] == [0, 1, 2, 3]  # once is not twice
    halted = walk(0.5, 0.6, 0.7, bad_at=1.0)
    assert [one.strength for one in halted] == [0, 1] and halted[-1].stop == "guardrail: kl 2 > 1"
    noisy = {1.0: row(1.0, 0.1, -1.0, 1.5), 2.0: row(2.0, 0.1, -1.0, 1.6), 3.0: row(3.0, 0.1, 5, 5)}
    assert len(walked(row(0.0, 0.0, 0.0, 0.1), list(noisy), noisy.__getitem__)) == 2


def test_front_and_best_are_those_of_the_definition():
    rows = [row(float(i), kl, p, p) for i, (kl, p) in enumerate([(0, 0.1), (1, 0.3), (2, 0.2), (1, 0.2), (3, 0.9)])]
    rows[4] = replace(rows[4], broken=("kl",))
    found = Sweep(PLAN, (), tuple(rows))
    assert [one.strength for one in found.pareto()] == [0, 1, 4]
    assert found.best().strength == 1 and found.best().interval() == pytest.approx((0.3, 0.3))
    with pytest.raises(ValueError, match="Every steered row"):
        Sweep(PLAN, (), (rows[4],)).best()


def test_bounds_are_those_of_the_texts():
    assert repetition(["a b c a b c", "one two three"]) == pytest.approx((1 / 4 + 0) / 2)
    assert broken({"kl": 1.5, "length": None}, {"kl": (None, 1.0), "length": (1.0, None)}) == (
        "kl 1.5 > 1", "length is not finite",
    )  # fmt: skip
    assert broken({"kl": 1.0}, {"kl": (0.5, 1.0)}) == () and broken({"kl": 0.4}, {"kl": (0.5, None)})
    for wrong in ({"other": (0, 1)}, {"kl": 1.0}, {"kl": (2, 1)}, {"kl": (None, None)}):
        with pytest.raises(ValueError, match=r"measure|bounds"):
            checked_bounds(wrong, ["kl"])


def test_what_cannot_be_swept_is_refused():
    data = SimpleNamespace(desired=["a"], undesired=["b"], prompts=["c", "d"])
    with pytest.raises(ValueError, match="judge="):
        ot.sweep(None, data, {"CAA": ot.CAA})
    with pytest.raises(ValueError, match="dict by name"):
        ot.sweep(None, data, [ot.CAA])  # type: ignore[arg-type]
