"""The checks against closed forms on planted activations; every cell of a small run of the whole comparison; the laws
of the rule, the seeds and the controls."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from instances import activations, planted, shorter, with_queries, without_shape_checks
from sklearn.metrics import roc_auc_score

import odesteer_tl as ot
from odesteer_tl.evaluation import continuations, runs
from odesteer_tl.evaluation import entries as entries_module
from odesteer_tl.evaluation.checks import conditions_of
from odesteer_tl.evaluation.continuations import UNSTEERED, Setting, continued
from odesteer_tl.evaluation.curve import Curve
from odesteer_tl.evaluation.data import material_of
from odesteer_tl.evaluation.differences import Difference, difference
from odesteer_tl.evaluation.entries import (
    LITERATURE,
    LOOPS,
    PRAISE,
    TRIALS,
    Entry,
    Prompted,
    controls,
    entry_of,
    opposites,
    shuffled,
)
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.metrics import bootstrap_interval
from odesteer_tl.evaluation.reports import ablation
from odesteer_tl.evaluation.reports import paper as paper_module
from odesteer_tl.evaluation.reports.ablation import Barriers, agreement, barriers_of
from odesteer_tl.evaluation.runs import DISPLACEMENTS, FRACTIONS, levels_of
from odesteer_tl.evaluation.strength import best, reach
from odesteer_tl.evaluation.tables import spread
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.flows.features import Linear, Polynomial
from odesteer_tl.flows.tuning import Trial, folds_of, tune
from odesteer_tl.methods import Method
from odesteer_tl.methods.registry import registered
from odesteer_tl.parity import table

SEEDS = 2
JUDGE = Judge.load_embedded().positive_probability


CLASSES = [entry.method for entry in registered() if entry.fits_activations]


@pytest.fixture(scope="module")
def demo():
    return ot.load_demo()


@pytest.fixture(scope="module")
def held_out():
    return planted(50, 40, seed=3)


def parity(name):
    """A loop of the parity table, fitted to a random model."""
    return table.parity_rows()[name]("gpt2")


class Flat:
    """A barrier without a slope: nothing moves."""

    def value(self, a):
        return 0 * a.sum(-1)


class Near:
    """A top that lies a twentieth of a's length from a, on the way to the origin."""

    def __init__(self, a):
        self.a = a

    def value(self, a):
        return -((a - 0.95 * self.a) ** 2).sum(-1)


def test_the_conditions_of_caa_are_its_closed_form(held_out):
    method, a = ot.CAA.fit(planted()), held_out.undesired.double()
    v = method.barrier.weight.double()
    T = 0.2 / float((v.norm() / a.norm(dim=1)).median())
    found, end = conditions_of(method, held_out), a + T * v
    # the T of a displacement is found to one part in a thousand
    assert found.T == pytest.approx(T, rel=2e-3) and found.displacement == pytest.approx(0.2, rel=2e-3)
    assert found.reached
    assert found.norm_ratio == pytest.approx(float((end.norm(dim=1) / a.norm(dim=1)).median()), rel=1e-3)
    cosines = (end * a).sum(1) / end.norm(dim=1) / a.norm(dim=1)
    assert found.angle == pytest.approx(math.degrees(float(cosines.arccos().median())), rel=2e-3)
    h = a @ v + method.barrier.bias
    rise = float(T * v @ v)  # by which CAA's h rises for every activation, at any place alike
    along = [float(h.median()) + part * rise for part in (0, 0.25, 0.5, 0.75, 1)]
    assert found.h_along == pytest.approx(along, abs=2e-3 * rise)
    assert found.rising == 1.0
    assert found.inside == pytest.approx(float((h + T * v @ v >= 0).double().mean()), abs=1 / len(a))
    labels = [1] * len(held_out.desired) + [0] * len(a)
    assert found.auc == pytest.approx(roc_auc_score(labels, torch.cat([held_out.desired.double(), a]) @ v), abs=1e-6)


def test_h_is_kept_at_every_step_of_a_flow_in_the_rows_and_the_json(held_out):
    method = ot.ODESteer.fit(planted(), steps=4)
    found = ot.compare(None, planted(), {"given": method})
    (kept,) = json.loads(json.dumps(found.as_json()))["rows"]
    c, a = found.row("given").conditions, planted().split(0)[1].undesired
    ways = [method.barrier.value(point).median() for point in method.trajectory(a, c.T).activations]
    assert c.h_along == pytest.approx([float(h) for h in ways]) and len(c.h_along) == 5
    assert kept["conditions"]["h_along"] == list(c.h_along)
    assert f"{c.h_along[0]:+.2g} → {c.h_along[-1]:+.2g}" in found.table()


def test_hpr_is_checked_at_its_own_angles_and_keeps_lengths(held_out):
    method = ot.HPR.fit(replace(planted(60, 60), paired=True), epochs=8)
    found = conditions_of(method, held_out)
    assert found.T == 1.0 and found.reached and found.norm_ratio == pytest.approx(1, abs=1e-5)
    a = held_out.undesired
    turned = torch.where(a @ method.barrier.weight < 0, method.angle(a), torch.zeros(len(a)))
    assert found.angle == pytest.approx(math.degrees(float(turned.median())), rel=1e-3)


@pytest.mark.parametrize("steps", [1, 10])
def test_a_method_that_passes_the_top_of_h_does_not_rise_all_the_way(steps):
    held_out = planted(40, 40, seed=3)
    method = ot.GradientFlow(Near(held_out.undesired), steps=steps, layer=3)
    assert conditions_of(method, held_out, displacement=0.02).rising == 1.0
    assert conditions_of(method, held_out, displacement=0.2).rising == 0.0


def test_what_has_no_barrier_has_no_h(held_out):
    found = conditions_of(ot.RandomDirection.fit(planted()), held_out)
    assert (found.auc, found.h_along, found.rising, found.inside) == (None,) * 4
    assert found.displacement == pytest.approx(0.2, rel=2e-3)


def test_a_displacement_that_cannot_be_had_is_said(held_out):
    method = ot.GradientFlow(Flat(), unit_speed=False, layer=3)
    assert reach(method, held_out.undesired, 0.2)[1] == 0
    found = conditions_of(method, held_out)
    assert not found.reached and found.displacement == 0 and found.angle == 0
    assert not any(level.reached for level in levels_of(method, held_out.undesired))
    table = ot.compare(None, planted(), {"flat": method}).table()
    assert "‡ does not reach every displacement" in table


def test_every_kind_of_row_has_as_many_strengths(held_out):
    acts, a = planted(), activations(30, dtype=torch.float32)
    caa, act = levels_of(ot.CAA.fit(acts), a), levels_of(ot.LinearAcT.fit(acts), a)
    assert len(caa) == len(act) == len(levels_of(Prompted(PRAISE), a)) == TRIALS == 3
    assert [level.displacement for level in caa] == list(DISPLACEMENTS)
    assert [level.T for level in act] == list(FRACTIONS)
    moved = (ot.LinearAcT.fit(acts).steer(a, T=0.5) - a).norm(dim=1) / a.norm(dim=1)
    assert act[1].displacement == pytest.approx(float(moved.median()))


def test_shuffled_labels_are_the_same_rows_on_sides_that_mean_nothing():
    acts = replace(planted(400, 400), paired=True)
    sides = [shuffled(acts, seed) for seed in range(8)]
    rows = torch.cat([acts.desired, acts.undesired])
    own = {tuple(row) for row in acts.desired.tolist()}
    for found in sides:
        assert (len(found.desired), len(found.undesired), found.paired) == (400, 400, False)
        assert torch.equal(torch.cat([found.desired, found.undesired]).sort(0).values, rows.sort(0).values)
        # hypergeometric: 400 of 800 drawn, half of them desired at first, standard deviation 7.1
        assert abs(sum(tuple(row) in own for row in found.desired.tolist()) - 200) < 36
    assert torch.equal(shuffled(acts, 3).desired, sides[3].desired)
    assert not torch.equal(sides[2].desired, sides[3].desired)


def test_random_directions_cancel_in_pairs_and_differ_between_seeds():
    first, second = opposites(planted(), 0, pairs=2), opposites(planted(), 1, pairs=2)
    assert len(first) == 4
    assert all(torch.equal(a.direction, -b.direction) for a, b in zip(first[::2], first[1::2], strict=True))
    together = torch.stack([each.direction for each in (*first[::2], *second[::2])])
    assert (together @ together.T - torch.eye(4)).abs().max() < 0.9


@pytest.mark.parametrize("name", [*LITERATURE, *controls()])
def test_rows_of_chance_and_no_others_are_fitted_by_their_seed(name):
    acts = replace(planted(60, 60), paired=True)
    acts, entry = replace(acts, queries=acts.undesired.flip(0)), (LITERATURE | controls())[name]
    same, again, other = (entry.fit(acts, seed) for seed in (0, 0, 1))
    a = activations(30, dtype=torch.float32)
    same, again, other = (
        (method[0] if isinstance(method, tuple) else method).steer(a, T=1.0) for method in (same, again, other)
    )
    assert torch.equal(same, again)
    assert torch.equal(same, other) != entry.by_chance


def test_activations_alone_are_split_and_checked():
    acts = planted(120, 120)
    fit, unseen = acts.split(0)
    found = ot.compare(None, acts, {"fitted": ot.ITI.fit(acts), "function": ot.ITI.fit, "entry": LITERATURE["ITI"]})
    assert [row.name for row in found.rows] == ["fitted", "function", "entry"]
    assert all(row.runs == () for row in found.rows)
    expected = ot.ITI.fit(fit)
    assert torch.equal(found.row("function").method.barrier.weight, expected.barrier.weight)
    assert found.row("entry").conditions == conditions_of(expected, unseen)
    assert found.row("fitted").conditions == conditions_of(ot.ITI.fit(acts), unseen)
    assert [row.fitted_on for row in found.rows] == ["elsewhere", "texts", "texts"]
    lasted = [line.split()[-1] for line in found.table().splitlines()[1:]]
    assert lasted[0] == "given" and all(float(seconds) >= 0 for seconds in lasted[1:])
    kept = [row["seconds"] for row in json.loads(json.dumps(found.as_json()))["rows"]]
    assert kept[0] is None and all(seconds > 0 for seconds in kept[1:])


def test_rows_that_the_data_do_not_serve_are_left_out_and_said(tmp_path):
    found = ot.compare(None, planted())
    assert {"RepE", "HPR"} <= set(found.left_out)
    assert not set(found.left_out) & {row.name for row in found.rows}
    assert {"ITI", "ODESteer", "random direction", "shuffled labels"} <= {row.name for row in found.rows}
    assert "Left out: HPR, as it is fitted on pairs" in found.table()
    found.plot(tmp_path / "checks.png")
    assert (tmp_path / "checks.png").read_bytes()[:4] == b"\x89PNG"
    paired = ot.compare(None, replace(planted(60, 60), paired=True), {"HPR": LITERATURE["HPR"]})
    assert paired.row("HPR").conditions.norm_ratio == pytest.approx(1, abs=1e-5)


def test_few_pairs_with_queries_serve_every_row():
    found = ot.compare(None, with_queries(10, d_model=8))
    assert [row.name for row in found.rows] == [*LITERATURE, *controls()]
    assert found.left_out == dict.fromkeys(LOOPS, "it is fitted on texts and the model, and the data are activations")
    assert found.row("TruthFlow").method.basis.shape == (8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"HPR": LITERATURE["HPR"]}}, "'HPR' cannot be fitted: it is fitted on pairs"),
        ({"methods": {"CAA": "caa"}}, "'CAA' is a fitted method"),
        ({"data": [1, 2]}, "list lacks desired"),
        ({"judge": JUDGE}, "A judge needs prompts"),
        ({"seeds": ()}, "at least one seed"),
        ({"methods": {"none": lambda acts: None}}, "'none' cannot be compared: its function returns a fitted method"),
        ({"methods": {"HPR": ot.HPR.fit}}, "'HPR' cannot be fitted: it is fitted on pairs"),
        ({"methods": {"HPR": lambda acts: ot.HPR.fit(acts)}}, "'HPR' cannot be compared: HPR learns"),
        (
            {"methods": {"none": lambda acts: Prompted(())}},
            "'none' cannot be compared: 3 prefixes stand before .* got 0",
        ),
        ({"methods": {"two": lambda acts: Prompted(("one", "two"))}}, "every row has 3 trials; got 2"),
        ({"methods": None, "prefixes": ("one",)}, "every row has 3 trials; got 1"),
        ({"prefixes": PRAISE}, "leave out methods, or name a Prompted"),
        ({"layer": 3}, "these activations were read at blocks.3.hook_resid_post: leave it out"),
        ({"data": planted(layer=None), "layer": 3}, "these activations were read already: leave it out"),
        ({"methods": {"both": ot.Layers(parts=(ot.CAA.fit(planted()),))}}, "'both' cannot be compared: it acts at sev"),
        (
            {"methods": {"far": ot.CAA.fit(replace(planted(), layer=9, hook_name=None))}},
            "'far' cannot be compared: it was fitted at blocks.9.hook_resid_post, the data are read at blocks.3.hook_",
        ),
        ({"methods": {"loop": ot.SPID.fit}}, "'loop' cannot be fitted: it is fitted on texts and the model"),
        ({"methods": {"loop": parity("S-PID")}}, "'loop' cannot be compared: it steers a model over its layers"),
        (
            {"methods": {"z": ot.CAA.fit(replace(planted(), hook_name="blocks.3.attn.hook_z"))}},
            "it was fitted at blocks.3.attn.hook_z",
        ),
    ],
)
def test_what_cannot_be_compared_ends_in_its_message(change, message):
    arguments = {"data": planted(), "methods": {"ITI": ot.ITI.fit}} | change
    with pytest.raises(ValueError, match=message):
        ot.compare(None, **arguments)


def test_one_number_of_seeds_and_a_list_of_methods_are_refused():
    for wrong in ({"seeds": 3}, {"methods": [ot.ITI.fit]}):
        with (
            without_shape_checks(),
            pytest.raises(ValueError, match=r"such as \(0, 1, 2\), and methods a dict by name"),
        ):
            ot.compare(None, planted(), **wrong)


def test_a_method_without_a_layer_is_compared_at_that_of_the_data(held_out):
    near = ot.GradientFlow(Near(planted(60, 60).split(0)[1].undesired))
    assert ot.compare(None, planted(60, 60), {"near": near}).row("near").conditions.displacement > 0.19


def test_a_method_in_another_precision_is_checked_alike(held_out):
    method = ot.ODESteer.fit(planted())
    assert conditions_of(method.to(dtype=torch.float64), held_out) == conditions_of(method, held_out)


def test_without_a_judge_no_prompts_are_needed_and_nnsight_reads_at_the_same_layer(demo):
    few = SimpleNamespace(
        desired=demo.desired[:8], undesired=demo.undesired[:8], pairs=[],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
    )  # fmt: skip
    one = ot.compare(demo.model, few, {"CAA": ot.CAA.fit}).row("CAA")
    other = ot.compare(ot.load_demo(library="nnsight").model, few, {"CAA": ot.CAA.fit}).row("CAA")
    assert one.method.layer == other.method.layer == 2


@pytest.mark.parametrize("said", [[0.5], torch.tensor([0.5, float("nan")]), torch.tensor([-3.0, 3.0])], ids=str)
def test_a_judge_gives_a_probability_for_each_text(demo, said):
    setting = Setting(demo.model, 2, demo.prompts[:2], [], lambda texts: said, max_new_tokens=2)
    with pytest.raises(ValueError, match="one probability, from 0 to 1, for each of 2 texts"):
        continued(setting, setting.prompts, 1, None, None)
    as_list = replace(setting, judge=lambda texts: [0.2, 0.8])
    assert continued(as_list, setting.prompts, 1, None, None).desired.tolist() == [[0.0], [1.0]]


def test_data_with_prompts_need_a_model(demo):
    with pytest.raises(ValueError, match="needs a model"):
        ot.compare(None, demo)


def test_a_method_of_queries_is_fitted_on_pairs_with_their_queries(demo):
    seen = []
    few = replace(
        demo, pairs=demo.pairs[:6], desired=demo.desired[:5], undesired=demo.undesired[:5],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
    )  # fmt: skip
    entry = Entry(lambda acts, seed: seen.append(acts) or ot.CAA.fit(acts), "queries")
    row = ot.compare(demo.model, few, {"of queries": entry}).row("of queries")
    (acts,) = seen
    assert acts.paired and row.fitted_on == "queries" and acts.layer == 2
    last = ot.collect(demo.model, [pair["query"] for pair in few.pairs], ["x"], 2, position="last").desired
    torch.testing.assert_close(acts.queries, last, atol=1e-4, rtol=1e-5)
    texts = [pair["query"] + pair["undesired"] for pair in few.pairs]
    whole = ot.collect(demo.model, texts, [pair["query"] for pair in few.pairs], 2, position="mean")
    both, asked = (mask.sum(1, keepdim=True) for _, mask in whole.tokens)
    answer = (both * whole.desired - asked * whole.undesired) / (both - asked)
    torch.testing.assert_close(acts.undesired, answer, atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="have no queries"):
        ot.compare(None, replace(planted(60, 60), paired=True), {"of queries": entry})
    with pytest.raises(ValueError, match="on pairs of answers"):
        ot.compare(demo.model, replace(few, pairs=[]), {"of queries": entry})


class Mine(ot.CAA):
    """A class of a user's own."""


@pytest.mark.parametrize("cls", [*CLASSES, Mine], ids=lambda cls: cls.__name__)
def test_the_fit_of_a_class_is_fitted_on_what_it_needs_by_each_seed_that_it_takes(cls):
    acts = with_queries()
    entry = entry_of("row", cls.fit)
    takes_seed = cls in (ot.HPR, ot.REControl, ot.TruthFlow, ot.RandomDirection)
    assert (entry.on, entry.by_chance) == ({ot.HPR: "pairs", ot.TruthFlow: "queries"}.get(cls, "texts"), takes_seed)
    a = activations(9, dtype=torch.float32)
    seeded = [cls.fit(acts, **({"seed": seed} if takes_seed else {})).steer(a, T=1.0) for seed in (0, 1)]
    assert all(torch.equal(entry.fit(acts, seed).steer(a, T=1.0), seeded[seed]) for seed in (0, 1))
    assert torch.equal(*seeded) != takes_seed


def test_a_class_without_a_view_is_fitted_on_texts():
    class Plain(Method):
        @classmethod
        def fit(cls, acts):
            return acts

    entry = entry_of("plain", Plain.fit)
    assert (entry.on, entry.by_chance, entry.fit("acts", 1)) == ("texts", False, "acts")


def test_classes_are_compared_by_their_own_fit_alone(demo):
    few = replace(
        demo, pairs=demo.pairs[:12], desired=demo.desired[:12], undesired=demo.undesired[:12], prompts=demo.prompts[:1],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
        validation_prompts=demo.validation_prompts[:1],
    )  # fmt: skip
    methods = {"HPR": ot.HPR.fit, "TruthFlow": ot.TruthFlow, "RC": ot.REControl.fit}  # a class stands for its fit
    found = ot.compare(
        demo.model, few, methods, judge=JUDGE, seeds=(0, 1), samples=1, validation_samples=1, max_new_tokens=2
    )
    assert [row.fitted_on for row in found.rows[1:]] == ["pairs", "queries", "texts"]
    for row in found.rows[2:]:  # the T of TruthFlow and RE-Control depends on how steep the network of a seed is
        assert row.runs[0].trials[0].T != row.runs[1].trials[0].T


@pytest.fixture(scope="module")
def few(demo):
    return replace(
        demo, pairs=[], desired=demo.desired[:6], undesired=demo.undesired[:6], prompts=demo.prompts[:2],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
        validation_prompts=demo.validation_prompts[:2],
    )  # fmt: skip


def test_closed_loops_are_fitted_on_the_model_and_measured_in_it(few):
    """At the displacements of every row, as the model shows them where the data are read, or T = 0 where a loop moves
    further even then, and says so; no h at one site. A fitted loop and a class's own fit make the same row."""
    fitted = ot.SPID.fit(few.model, few.desired, few.undesired)
    found = ot.compare(
        few.model, few, {"S-PID": LOOPS["S-PID"], "own": ot.SPID.fit, "fitted": fitted}, judge=JUDGE, seeds=(0,),
        samples=1, validation_samples=1, max_new_tokens=3,
    )  # fmt: skip
    rows = found.rows[1:]
    assert [row.fitted_on for row in rows] == ["model", "model", "elsewhere"]
    assert all(torch.equal(row.method.directions, fitted.directions) for row in rows)
    hook = "blocks.2.hook_resid_post"

    def at(text, T):
        if T is None:
            return few.model.run_with_cache(text, names_filter=hook)[1][hook][0, -1]
        with ot.steering(few.model, fitted, T):
            return few.model.run_with_cache(text, names_filter=hook)[1][hook][0, -1]

    def moved(texts, T):
        pairs = [(at(text, None), at(text, T)) for text in texts]
        return torch.stack([(end - a).norm() / a.norm() for a, end in pairs])

    for row in rows:
        for run in row.runs:
            assert len(run.trials) == TRIALS
            for trial, goal in zip(run.trials, DISPLACEMENTS, strict=True):
                expected = float(moved(few.validation_prompts, trial.T).median())
                assert trial.displacement == pytest.approx(expected, rel=0.03)
                assert trial.displacement >= goal
            assert run.reached == ([trial.displacement for trial in run.trials] == list(DISPLACEMENTS))
            assert run.displacement == pytest.approx(float(moved(few.prompts, run.T).mean()), rel=1e-3)
        c = row.conditions
        assert c.displacement == pytest.approx(float(moved(few.validation_undesired, 1.0).median()), rel=1e-3)
        assert (c.T, c.auc, c.h_along, c.rising, c.inside) == (1.0, None, None, None, None) and c.angle > 0
    assert "no h" in found.table()
    assert ("‡" in found.table()) == any(not run.reached for row in rows for run in row.runs)


def test_a_loop_that_the_comparison_does_not_see_or_that_would_take_turns_is_refused(few):
    late = ot.SPID.fit(few.model, few.desired, few.undesired, layers=[4, 5])
    with pytest.raises(ValueError, match="'late' cannot be compared: it acts from layer 4 on, and the data"):
        ot.compare(few.model, few, {"late": late})
    assert ot.compare(few.model, few, {"late": late}, layer=4).rows[0].conditions.displacement > 0
    both = Entry(lambda source, seed: (late, late), "model")
    with pytest.raises(ValueError, match="'both' cannot be compared: closed loops cannot take turns"):
        ot.compare(few.model, few, {"both": both}, layer=4)


def test_of_the_default_rows_a_loop_that_fails_is_left_out_with_the_reason(few, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(ot.ALQR, "fit", fails)
    found = ot.compare(few.model, few)
    assert found.left_out["A-LQR"] == found.left_out["A-LQR+"] == "no memory"
    assert "S-PID" in [row.name for row in found.rows]
    with pytest.raises(RuntimeError, match="no memory"):
        ot.compare(few.model, few, {"mine": ot.ALQR.fit})


def test_a_lqr_plus_steers_every_token(few, monkeypatch):
    """And A-LQR the last one of the prompt, and those that follow."""
    given = []
    generate = continuations.generate
    monkeypatch.setattr(continuations, "generate", lambda *a, **k: given.append((k, generate(*a, **k))) or given[-1][1])
    monkeypatch.setitem(entries_module.FEW, "n_jacobians", 2)
    monkeypatch.setattr(runs, "SCAN", (0.0, 1.0, 8.0))
    monkeypatch.setattr(runs, "PRECISION", 0.2)
    entries = {name: LOOPS[name] for name in ("A-LQR", "A-LQR+")}
    found = ot.compare(
        few.model, few, entries, judge=JUDGE, seeds=(0,), samples=1, validation_samples=1, max_new_tokens=2,
    )  # fmt: skip
    base, plain, plus = given[:2], given[2:6], given[6:]
    assert [k["positions"] for k, _ in plain] == ["decoding"] * 4 and [k["positions"] for k, _ in plus] == ["all"] * 4
    assert len(base) == 2 and all(k["layer"] is None for k, _ in (*plain, *plus))
    for (_, one), (_, all_of) in zip(plain, plus, strict=True):
        before = int(one.prompt_lengths.sum()) - len(one.prompt_lengths)
        assert set(one.report.tokens_steered) == set(all_of.report.tokens_steered) == set(range(6))
        if torch.equal(one.mask.sum(1), all_of.mask.sum(1)):
            assert all_of.report.tokens_steered[0] - one.report.tokens_steered[0] == before
    first, second = found.rows[1:]
    assert torch.equal(first.method.answers, second.method.answers)  # one regulator
    assert first.conditions.displacement != second.conditions.displacement


def test_the_perplexity_of_a_prompted_continuation_is_that_after_the_prompt_alone(demo, monkeypatch):
    made, judged = [], []
    generate = continuations.generate
    monkeypatch.setattr(continuations, "generate", lambda *a, **k: made.append(generate(*a, **k)) or made[-1])
    prompts = ["The film opens with", "I watched this with my family and"]
    setting = Setting(
        demo.model, 2, prompts, prompts, lambda texts: judged.extend(texts) or JUDGE(texts), max_new_tokens=5
    )
    found = continued(setting, prompts, 1, None, None, prefix="I loved every minute of it.")
    (out,) = made
    assert all(text.startswith("I loved every minute of it. " + p) for text, p in zip(out.texts, prompts, strict=True))
    assert judged == found.continuations == out.continuations
    losses = []
    for row, prompt in enumerate(prompts):
        generated = out.tokens[row][out.mask[row]][int(out.prompt_lengths[row]) :]
        before = demo.model.to_tokens(prompt)[0]
        with torch.no_grad():
            logp = demo.model(torch.cat([before, generated])[None])[0].log_softmax(-1)
        losses += [-float(logp[len(before) - 1 + i, token]) for i, token in enumerate(generated)]
    assert len(losses) >= 6
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The whole of `odesteer-tl compare`, on few prompts and few candidates, with what it printed."""
    picture = tmp_path_factory.mktemp("compare") / "picture.png"
    counts = paper_module.Counts(
        prompts=3, validation_prompts=2, samples=4, validation_samples=2, max_new_tokens=3, seeds=SEEDS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_module, "QUICK", counts)
        patch.setattr(paper_module, "load_demo", lambda model: shorter(ot.load_demo(model)))
        patch.setattr(ablation, "tune", few_candidates)
        patch.setitem(entries_module.FEW, "n_jacobians", 2)
        patch.setattr(runs, "SCAN", (0.0, 1.0, 8.0))  # where the strengths of loops are sought, and how closely
        patch.setattr(runs, "PRECISION", 0.2)
        lines: list[str] = []
        with without_shape_checks():  # every fit and every continuation is checked elsewhere, and this is long
            found = paper_module.run_contest(quick=True, picture=picture, out=lines.append)
    return found, "\n".join(lines), picture


def few_candidates(acts, features=None, seed=0):
    curved = [Polynomial(), Polynomial(2, 1.0), Polynomial(3, 1.0)]
    return tune(acts, curved if features is None else features, Cs=(1, 10), folds=2, seed=seed)


NAMES = [UNSTEERED, *LITERATURE, *LOOPS, *controls(PRAISE)]


def test_every_row_is_there_with_a_run_for_each_seed_and_three_trials(small):
    found, _, picture = small
    assert [row.name for row in found.rows][: len(NAMES)] == NAMES
    assert len(found.rows) == len(NAMES) + 6 and not found.left_out  # six cells of the ablation have rows of their own
    for row in found.rows:
        assert [run.seed for run in row.runs] == list(range(SEEDS))
        for run, base in zip(row.runs, found.rows[0].runs, strict=True):
            assert len(run.trials) == (1 if row.name == UNSTEERED else 3)
            assert run.desired.shape == (3, 4)
            assert run.shift == pytest.approx(run.share - base.share, abs=1e-12)
            if run.T is None or row.name == UNSTEERED:
                assert run.allowed == best(run.trials, base.trials[0]).allowed(base.trials[0])
            else:
                curve = Curve(run.trials, base.trials[0], rests=row.name not in LOOPS)
                assert (run.T, run.allowed) == (curve.chosen.T, curve.allowed)
            figures = [run.share, run.perplexity_ratio, run.distinct1, run.distinct2, run.distinct3]
            assert all(math.isfinite(each) for each in figures) and run.perplexity_ratio > 0
    base = found.rows[0].runs[0]
    assert (base.T, base.displacement, base.shift, base.perplexity_ratio) == (0, 0, 0, 1)
    assert all(run.prefix in PRAISE and run.T is None for run in found.row("prompt only").runs)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_no_cell_is_blank_and_none_holds_a_filler(small):
    found, said, _ = small
    blocks = found.table(NAMES).split("\n\n")
    texts, checks = (block.splitlines()[1:] for block in blocks[:2])
    assert [line[:20].rstrip(" †‡") for line in texts] == NAMES
    steered = [name for name in NAMES if name not in (UNSTEERED, "prompt only")]
    assert [line[:20].strip() for line in checks] == steered
    for line in texts:  # T, moved, and six times mean ± sd
        assert len(line[20:].split()) == 2 + 6 * 3, line
    for line in checks:  # eight numbers, "a → b" for h; four times "no h" where there is none
        assert len(line[20:].split()) == (14 if "no h" in line else 12), line
    none = ("random direction", "TruthFlow", *LOOPS)
    assert ["no h" in line for line in checks] == [name in none for name in steered]
    for word in ("nan", "inf ", "None", " - "):
        assert word not in said
    for sentence in (found.table(NAMES), "its published numbers are not reproduced here", "cos(v_linear, v_nonlinear)"):
        assert sentence in said
    assert said.count("Does tuned nonlinearity pay? ") == 1
    verdicts = [line for line in said.splitlines() if line.endswith(("more", "less", "to be seen")) and "[" in line]
    cautions = f"{len(verdicts)} are looked at without correction, and a deviation over two seeds says little."
    assert len(verdicts) == 10 and cautions in " ".join(said.split())


def test_the_figures_are_numpy_s_mean_and_deviation_over_seeds(small):
    found, _, _ = small
    for row in found.rows:
        for name in ("share", "shift", "perplexity_ratio", "distinct1", "distinct3"):
            values = [getattr(run, name) for run in row.runs]
            assert row.over_seeds(name) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert spread(0.123, 0.045, scale=100, sign="+") == "+12.3 ± 4.5" and spread(1.0, None, digits=2) == "1.00"


def test_the_numbers_are_json(small):
    found, _, _ = small
    kept = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [row["name"] for row in kept["rows"]] == [row.name for row in found.rows]
    assert all(len(row["runs"]) == SEEDS for row in kept["rows"])


def test_the_same_seeds_give_the_same_numbers_and_chance_is_drawn_anew_for_each(small, demo):
    found, _, _ = small
    few = replace(shorter(demo), prompts=demo.prompts[:3], validation_prompts=demo.validation_prompts[:2])
    names = ["CAA", "shuffled labels", "random direction", "prompt only"]
    again = ot.compare(
        demo.model, few, {name: (LITERATURE | controls(PRAISE))[name] for name in names}, judge=JUDGE,
        seeds=range(SEEDS), samples=4, validation_samples=2, max_new_tokens=3,
    )  # fmt: skip
    for name in names:
        for run, other in zip(found.row(name).runs, again.row(name).runs, strict=True):
            assert torch.equal(run.desired, other.desired)
            assert replace(run, desired=other.desired).__dict__ == other.__dict__
    first, second = found.row("RE-Control").runs  # its T depends on how steep the network of a seed is
    assert [trial.T for trial in first.trials] != [trial.T for trial in second.trials]
    first, second = found.row("CAA").runs
    assert [trial.T for trial in first.trials] == [trial.T for trial in second.trials]


def test_linear_cells_differ_in_their_features_alone(small):
    found, _, _ = small
    for steps, nonlinear in (("one step", "one-step ODESteer"), ("ten steps", "ODESteer")):
        linear, other = found.row(f"paper linear, {steps}").method, found.row(nonlinear).method
        assert type(linear) is type(other) and linear.flow.steps == other.flow.steps == (1 if "one" in steps else 10)
        assert linear.barrier.features == Linear(normalize=True)
    a = activations(9, d_model=256, dtype=torch.float32)
    assert agreement(linear, found.row("paper linear, one step").method, a) == pytest.approx(1, abs=1e-5)
    cosine = torch.cosine_similarity(linear.vector_field(a), other.vector_field(a), dim=1).mean()
    assert agreement(linear, other, a) == pytest.approx(float(cosine))


def test_the_paper_s_values_and_the_tuned_ones_are_measured_on_the_same_folds():
    acts = planted()
    paper, tuned = barriers_of(acts, seed=2)
    assert (paper.linear.features, paper.nonlinear.features) == (Linear(), Polynomial())
    assert paper.linear.C == paper.nonlinear.C == 1.0
    for each in (paper.linear, paper.nonlinear, tuned.linear, tuned.nonlinear):
        expected = []
        for fit, held in folds_of(acts, seed=2):
            h = LogRatioBarrier.fit(fit, each.features, C=each.C)
            labels = [1] * len(held.desired) + [0] * len(held.undesired)
            expected.append(roc_auc_score(labels, h.value(torch.cat([held.desired, held.undesired]))))
        assert each.aucs == pytest.approx(expected, abs=0.01)  # one pair of a fold's 108 in the order of another
        assert (each.auc, each.sd) == pytest.approx((np.mean(each.aucs), np.std(each.aucs, ddof=1)))
    assert tuned.linear.auc >= paper.linear.auc and tuned.nonlinear.auc >= paper.nonlinear.auc
    gains = np.subtract(tuned.nonlinear.aucs, tuned.linear.aucs)
    assert tuned.gain == pytest.approx((gains.mean(), gains.std(ddof=1)))


def test_a_linear_h_regularised_alike_is_the_linear_part_of_the_nonlinear_one():
    """With a small γ/c₀ the nonlinearity vanishes, and what is left is a linear h with the C that `alike` says."""
    acts, features = planted(), Polynomial(2, gamma=1e-3, coef0=1.0)
    alike = Barriers("tuned", Trial(Linear(), 1.0, ()), Trial(features, 50.0, ())).alike
    assert alike == pytest.approx(0.1)
    curved, linear = (ot.ODESteer.fit(acts, features=f, C=C) for f, C in ((features, 50.0), (Linear(), alike)))
    a = activations(20, dtype=torch.float32)
    assert agreement(curved, linear, a) > 0.9999
    assert agreement(curved, ot.ODESteer.fit(acts, features=Linear(), C=100.0), a) < 0.99


def test_material_is_read_where_the_demo_reads(demo):
    few = replace(
        demo, pairs=[], desired=demo.desired[:3], undesired=demo.undesired[:2],
        validation_desired=demo.validation_desired[:2], validation_undesired=demo.validation_undesired[:1],
    )  # fmt: skip
    found = material_of(demo.model, few)
    expected = ot.collect(demo.model, few.desired, few.undesired, layer=2, position="mean")
    assert found.texts.layer == 2 and found.pairs is None and len(found.held_out.undesired) == 1
    assert torch.equal(found.texts.desired, expected.desired)


@pytest.mark.parametrize(
    ("mean", "sd", "interval", "verdict"),
    [
        (0.1, 0.02, (0.03, 0.2), "more"),
        (-0.1, 0.02, (-0.2, -0.03), "less"),
        (0.1, 0.02, (-0.01, 0.2), "no difference to be seen"),
        (0.1, 0.06, (0.03, 0.2), "no difference to be seen"),
        (0.1, None, (0.03, 0.2), "more"),
    ],
)
def test_a_difference_is_one_over_prompts_and_over_seeds(mean, sd, interval, verdict):
    found = Difference(mean, sd, interval, (0.0, 0.0))
    assert found.verdict == verdict and str(found).endswith(verdict)


def test_differences_are_paired_by_prompt_and_seed(small):
    found, _, _ = small
    more, less = found.row("ODESteer"), found.row("CAA")
    made = difference(more, less)
    each = [one.share - other.share for one, other in zip(more.runs, less.runs, strict=True)]
    assert (made.mean, made.sd) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    both = [np.array([run.desired.mean(1) for run in row.runs]).mean(0) for row in (more, less)]  # a number per prompt
    drawn = torch.as_tensor(both[0] - both[1]).unsqueeze(1)
    assert made.interval == pytest.approx(bootstrap_interval(drawn))  # prompts are drawn, with all their seeds
    tried = np.array([[[trial.share for trial in run.trials] for run in row.runs] for row in (more, less)])
    each = (tried[0] - tried[1]).mean(1)
    assert made.equal == pytest.approx((each.mean(), each.std(ddof=1)))
    none = difference(more, more)
    assert (none.mean, none.interval, none.verdict) == (0, (0, 0), "no difference to be seen")
