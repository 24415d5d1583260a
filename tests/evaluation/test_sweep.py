"""Sweeps: killed and resumed, stopped, bounded, refused; the embedded model writes."""

import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from instances import planted, without_shape_checks

import odesteer_tl as ot
from odesteer_tl.evaluation import continuations
from odesteer_tl.evaluation.data import FitData
from odesteer_tl.evaluation.engine import Engine
from odesteer_tl.evaluation.entries import entry_of
from odesteer_tl.evaluation.separation import separations
from odesteer_tl.evaluation.sweeps import folder_lock
from odesteer_tl.evaluation.sweeps import plan as plan_module
from odesteer_tl.evaluation.sweeps.asked import Asked
from odesteer_tl.evaluation.sweeps.cell_measures import CellMeasures
from odesteer_tl.evaluation.sweeps.cells import KEY, Cells
from odesteer_tl.evaluation.sweeps.guardrails import broken, checked_bounds, informativeness, repetition
from odesteer_tl.evaluation.sweeps.places import screened
from odesteer_tl.evaluation.sweeps.plan import Plan
from odesteer_tl.evaluation.sweeps.result import Sweep, SweptRow
from odesteer_tl.evaluation.sweeps.walk import walked

RUN = """
import os, signal, sys
from types import SimpleNamespace
import odesteer_tl as ot

def praising(words):
    return lambda texts: sum(text.count(word) for text in texts for word in words) / len(texts)

def run(out, said=None, demo=None, words=("good", "great"), **other):
    demo = demo or ot.load_demo()
    data = SimpleNamespace(desired=demo.desired[:8], undesired=demo.undesired[:8], prompts=demo.prompts[:2])
    options = dict(layers=[1, 3], strengths=(0.1, 0.6), primary="good", metrics={"good": praising(words)},
                   keep=1, seeds=(0,), samples=1, max_new_tokens=3, guardrails={"kl": (None, 9.0)})
    methods = {"CAA": ot.CAA, "random": ot.RandomDirection}
    return ot.sweep(demo.model, data, methods, out=out, progress=said, **options | other)

def killed(out, demo, after):
    seen = []
    def said(text):
        seen.append(text)
        if len(seen) == after:
            os.kill(os.getpid(), signal.SIGKILL)
    run(out, said, demo)

if __name__ == "__main__":
    demo, pids = ot.load_demo(), []
    for after in (1, 3, 4):  # while it screens, after the unsteered cell, after two strengths in one batch
        pids.append(os.fork())
        if not pids[-1]:
            killed(sys.argv[1], demo, after)
        assert os.WTERMSIG(os.waitpid(pids[-1], 0)[1]) == signal.SIGKILL
        cells = os.path.join(sys.argv[1], "cells.jsonl")
        if os.path.exists(cells):
            open(cells, "a").write('{"method": "CA')
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The function `run`, and the folder of a sweep that was killed three times and has its last line cut."""
    at = tmp_path_factory.mktemp("sweep")
    source, out = at / "asked.py", at / "killed"
    source.write_text(RUN)
    subprocess.run([sys.executable, str(source), str(out)], timeout=120, check=True)
    sys.path.insert(0, str(at))
    try:
        from asked import run  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(at))
    return run, out


@pytest.fixture(scope="module")
def demo():
    return ot.load_demo()


@without_shape_checks()
def test_a_sweep_killed_three_times_gives_the_same_table_and_another_protocol_is_refused(asked, demo, tmp_path):
    run, out = asked
    said, whole = [], tmp_path / "whole"
    done = (out / "cells.jsonl").read_bytes().count(b"\n")
    assert done == 3
    resumed, once = run(out, said.append, demo), run(whole, demo=demo)
    assert (out / "cells.jsonl").read_bytes() == (whole / "cells.jsonl").read_bytes()
    assert str(resumed) == str(once) and resumed.to_json() == once.to_json()
    assert said[:2] == [f"finished before, in {out}: 3 of at most 5", "screening"] and len(said) == 3
    assert "random, layer" in said[2] and "strength 0.1, strength 0.6" in said[2]
    before = (out / "cells.jsonl").read_bytes()
    plan = run(out, demo=demo, dry_run=True)
    assert plan == resumed.plan and "At most 5 cells" in str(plan)
    for changed, message in (
        ({"seeds": (0, 1)}, r"seeds: \[0\] in the folder, \[0, 1\] now"),
        ({"words": ("good", "fine")}, r"functions\.good: not as in the folder \(closure words\)"),
        ({"strengths": {"CAA": (0.1,), "random": (0.1,)}}, "own_units: False in the folder, True now"),
    ):
        for dry in (False, True):
            with pytest.raises(ValueError, match=f"(?s)another protocol.*{message}"):
                run(out, demo=demo, dry_run=dry, **changed)
    assert (out / "cells.jsonl").read_bytes() == before
    for one in once.rows:  # its texts are those that were measured
        assert one.primary == sum(text.count(word) for text in one.texts[0] for word in ("good", "great")) / 2
    assert len({str(one.texts) for one in once.rows}) > 1 and '"texts"' not in once.to_json()
    caa = [row for row in once.rows if row.method == "CAA"]
    assert {row.unit for row in caa} == {"T"} and caa[0].strength == 0.1
    acts = ot.collect(demo.model, demo.desired[:8], demo.undesired[:8], layer=caa[0].layer)
    moved = ot.CAA.fit(acts).steer(acts.desired, caa[0].value) - acts.desired
    norms = torch.cat([acts.desired, acts.undesired]).norm(dim=1)
    assert moved.norm(dim=1).mean() == pytest.approx(0.1 * float(norms.median()), rel=0.1)
    assert {row.unit for row in once.rows if row.method == "random"} == {"relative_T"}


@without_shape_checks()
def test_neither_a_kill_nor_what_shares_a_batch_changes_a_figure(asked, demo, tmp_path, monkeypatch):
    run, whole, cut = asked[0], tmp_path / "whole", tmp_path / "cut"
    own = {"demo": demo, "seeds": (0, 1), "guardrails": {"kl": (None, 1e-9)}, "layers": [3], "samples": 2}
    once = run(whole, **own)
    assert [(row.method, row.strength) for row in once.rows[1:]] == [("CAA", 0.1), ("random", 0.1)]  # it stopped there
    lines = (whole / "cells.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 + 2 * 4  # and the strength that shared its batch is in the folder
    for kept in (3, 5, 8):  # in the middle of a batch, and of a line
        shutil.copytree(whole, cut)
        (cut / "cells.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:30])
        assert run(cut, **own).to_json() == once.to_json()
        assert (cut / "cells.jsonl").read_bytes() == b"".join(lines)
        shutil.rmtree(cut)
    together = run(None, **own | {"guardrails": {}})
    monkeypatch.setattr(plan_module, "MOST_AT_ONCE", 1)
    assert run(None, **own).rows == once.rows
    assert run(None, **own | {"guardrails": {}}).rows == together.rows and len(together.rows) == 5
    alone = run(None, **own | {"guardrails": {}, "strengths": (0.6,)})
    assert [row.measures for row in alone.rows[1:]] == [row.measures for row in together.rows[2::2]]


@without_shape_checks()
def test_a_strength_that_fails_does_not_take_those_before_it_along(asked, demo, monkeypatch):
    run, own = asked[0], {"demo": demo, "guardrails": {"kl": (None, 1e-9)}, "layers": [3]}
    expected = run(None, **own)
    cells = CellMeasures.cells

    def fails(self, name, place, walk, seed):
        if 0.6 in walk:
            raise ValueError("no finite number at 0.6")
        return cells(self, name, place, walk, seed)

    monkeypatch.setattr(CellMeasures, "cells", fails)
    assert run(None, **own).rows == expected.rows
    with pytest.raises(ValueError, match=r"no finite number at 0\.6"):
        run(None, **own | {"guardrails": {}})


def test_a_loud_row_does_not_choose_the_place():
    """A row of a sink's norm turns the difference of means, and is left out of what a place is judged by."""
    acts = planted()
    loud = replace(acts, desired=torch.cat([acts.desired, 500.0 * torch.ones_like(acts.desired[:1])]))
    entries = {"CAA": entry_of("CAA", ot.CAA)}
    asked = Asked(None, replace(PLAN, methods=("CAA",)), {}, {}, entries, {}, None)
    with pytest.warns(UserWarning, match="1 of 106 activations"):
        (found,) = screened(Engine(entries, [], 0), asked, {(3, "mean"): FitData(texts=loud)})
    assert found.auc == separations(acts, {"CAA": ot.CAA.fit}, progress=False)[0].auc


def test_the_plan_says_how_many_strengths_share_a_batch():
    walk = replace(PLAN, strengths={"m": (1.0, 2.0, 3.0, 4.0, 5.0)})
    assert walk.at_once == 4 and "4 strengths of a place are run at once" in str(walk)
    assert walk.beside("m", 2.0) == (1.0, 2.0, 3.0, 4.0) and walk.beside("m", 5.0) == (5.0,)
    many = replace(walk, prompts=40, samples=4)
    assert many.at_once == 1 and "at once" not in str(many) and many.beside("m", 2.0) == (2.0,)
    assert replace(walk, prompts=16, samples=4).at_once == 2


def test_a_folder_that_is_written_is_refused_and_free_after_a_kill(tmp_path):
    child = (
        "import runpy, sys; from pathlib import Path\n"
        "held = runpy.run_path(sys.argv[1])['locked'](Path(sys.argv[2])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", child, folder_lock.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="Another sweep is writing"):
            Cells(tmp_path, {})
        other.kill()
    with Cells(tmp_path, {}), pytest.raises(ValueError, match="Another sweep is writing"):
        Cells(tmp_path, {})


def test_a_folder_with_cells_is_resumed_with_a_warning_where_something_cannot_be_compared(tmp_path):
    cell: dict = dict.fromkeys(KEY, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Cells(tmp_path, {}, ["self.lock of judge"]) as cells:
            cells.add(cell)
    with pytest.warns(UserWarning, match=r"cannot be compared.*self\.lock of judge"):
        Cells(tmp_path, {}, ["self.lock of judge"]).close()


PLAN = Plan(("m",), (1,), ("last",), {"m": (1.0,)}, True, ("kl",), "share", {}, (0,), 1, 2, 1, 4)


def row(strength, kl, *scores, bad=()):
    return SweptRow("m", 1, "last", strength, "T", strength, {"kl": float(kl)}, [[float(one) for one in scores]], bad)


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


def test_the_conclusion_says_what_is_within_noise_and_which_walks_stopped_too_soon():
    start, clear, noisy = row(0.0, 0.0, 0.0, 0.1), row(1.0, 0.3, 0.5, 0.7), row(1.0, 0.3, -0.5, 0.9)
    assert Sweep(PLAN, (), (start, clear)).conclusion().endswith("for 0.3 nats of KL.")
    assert "within the noise of no steering" in Sweep(PLAN, (), (start, noisy)).conclusion()
    plain = walked(start, [1.0, 2.0, 3.0], lambda at: row(at, 0.04 * at, 0.0, 0.1))
    enough = walked(start, [1.0, 2.0, 3.0], lambda at: row(at, 0.05 * at, 0.0, 0.1))
    said = Sweep(PLAN, (), (start, *plain, *enough)).conclusion()
    assert "stopped in the noise below 0.1 nats: 1 of 2; begin at a larger strength" in said  # 0.08, and not 0.1


def test_the_front_is_that_of_all_comparisons():
    points = torch.randint(0, 6, (60, 2), generator=torch.Generator().manual_seed(1)).double().tolist()
    rows = [row(float(i), kl, p, p) for i, (kl, p) in enumerate(points)]
    by_hand = [
        i
        for i, (kl, p) in enumerate(points)
        if all(other == [kl, p] or other[0] > kl or other[1] < p for other in points)
    ]
    front = Sweep(PLAN, (), tuple(rows)).pareto()
    assert sorted(int(one.strength) for one in front) == by_hand and len(by_hand) > 2
    assert [one.measures["kl"] for one in front] == sorted(points[i][0] for i in by_hand)


def test_bounds_are_those_of_the_texts():
    assert repetition(["a b c a b c", "one two three"]) == pytest.approx((1 / 4 + 0) / 2)
    assert broken({"kl": 1.5, "length": None}, {"kl": (None, 1.0), "length": (1.0, None)}) == (
        "kl 1.5 > 1", "length is not finite",
    )  # fmt: skip
    assert broken({"kl": 1.0}, {"kl": (0.5, 1.0)}) == () and broken({"kl": 0.4}, {"kl": (0.5, None)})
    for wrong in ({"other": (0, 1)}, {"kl": 1.0}, {"kl": (2, 1)}, {"kl": (None, None)}):
        with pytest.raises(ValueError, match=r"measure|bounds"):
            checked_bounds(wrong, ["kl"])


def test_informative_texts_have_words_and_are_no_refusals():
    told = [
        "It is about a dog that finds home",
        "a a a a b b c",
        "",
        "I don’t know, maybe the weather",
        "yes yes yes yes",
    ]
    assert informativeness(told) == pytest.approx(1 / 5)
    assert informativeness(["Der Film handelt von einer Reise"]) == 1.0


@without_shape_checks()
def test_speed_is_measured_where_it_is_bounded_and_prompts_stand_in_the_template_of_the_data(demo, monkeypatch):
    heard, real = [], continuations.generate
    monkeypatch.setattr(continuations, "generate", lambda *a, **o: heard.append(o["chat_template"]) or real(*a, **o))
    monkeypatch.setattr(demo.model.tokenizer, "chat_template", "{{ messages[0].content }} so")
    data = SimpleNamespace(desired=demo.desired[:8], undesired=demo.undesired[:8], prompts=demo.prompts[:2], chat=True)
    options: dict = {"layers": [1], "primary": "n", "metrics": {"n": len}, "keep": 1, "seeds": (0,), "samples": 1}
    found = ot.sweep(
        demo.model, data, {"CAA": ot.CAA}, strengths=(0.1, 0.2), max_new_tokens=2,
        guardrails={"tokens_per_second": (1e9, None), "informativeness": (0.0, None)}, **options,
    )  # fmt: skip
    assert found.plan.chat and heard and all(heard) and "prompts in the chat template" in str(found.plan)
    assert len(found.rows) == 2 and "tokens_per_second" in str(found.rows[1].stop)  # nothing is that fast
    assert all(0 < row.measures["tokens_per_second"] < 1e9 for row in found.rows)
    with pytest.raises(ValueError, match=r"data\.chat"):
        ot.sweep(demo.model, SimpleNamespace(**vars(data) | {"chat": "yes"}), {"CAA": ot.CAA}, **options)
    named: dict = {"metrics": {"n": len, "tokens_per_second": len}}
    with pytest.raises(ValueError, match="names of their own"):
        ot.sweep(demo.model, data, {"CAA": ot.CAA}, **options | named)


def test_what_cannot_be_swept_is_refused():
    data = SimpleNamespace(desired=["a"], undesired=["b"], prompts=["c", "d"])
    with pytest.raises(ValueError, match="judge="):
        ot.sweep(None, data, {"CAA": ot.CAA})
    with pytest.raises(ValueError, match="dict by name"):
        ot.sweep(None, data, [ot.CAA])  # type: ignore[arg-type]
