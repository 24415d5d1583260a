"""The rows of `compare`: controls, what is fitted by chance, and what each class is fitted on."""

import json
from dataclasses import replace

import pytest
import torch
from instances import activations, planted, with_queries

import odesteer_tl as ot
from odesteer_tl.evaluation.checks import conditions_of
from odesteer_tl.evaluation.entries import (
    LITERATURE,
    LOOPS,
    Entry,
    controls,
    entry_of,
    opposites,
    shuffled,
)
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.methods import Method
from odesteer_tl.methods.registry import registered

JUDGE = Judge.load_embedded().positive_probability
CLASSES = [entry.method for entry in registered() if entry.fits_activations]


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
def test_rows_of_chance_and_no_others_are_fitted_by_their_seed(name, short_training):
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


def test_rows_that_the_data_do_not_serve_are_left_out_and_said(tmp_path, short_training):
    found = ot.compare(None, planted())
    assert {"RepE", "HPR"} <= set(found.left_out)
    assert not set(found.left_out) & {row.name for row in found.rows}
    assert {"ITI", "ODESteer", "random direction", "shuffled labels"} <= {row.name for row in found.rows}
    assert "Left out: HPR, as it is fitted on pairs" in found.table()
    found.plot(tmp_path / "checks.png")
    assert (tmp_path / "checks.png").read_bytes()[:4] == b"\x89PNG"
    paired = ot.compare(None, replace(planted(60, 60), paired=True), {"HPR": LITERATURE["HPR"]})
    assert paired.row("HPR").conditions.norm_ratio == pytest.approx(1, abs=1e-5)


def test_few_pairs_with_queries_serve_every_row(short_training):
    found = ot.compare(None, with_queries(10, d_model=8))
    assert [row.name for row in found.rows] == [*LITERATURE, *controls()]
    assert found.left_out == dict.fromkeys(LOOPS, "it is fitted on texts and the model, but the data are activations")
    assert found.row("TruthFlow").method.basis.shape == (8, 8)


def test_a_method_of_queries_is_fitted_on_pairs_with_their_queries(demo):
    seen = []
    few = replace(
        demo, pairs=demo.pairs[:6], desired=demo.desired[:5], undesired=demo.undesired[:5],
        validation_desired=demo.validation_desired[:3], validation_undesired=demo.validation_undesired[:3],
    )  # fmt: skip
    entry = Entry(lambda acts, seed: seen.append(acts) or ot.CAA.fit(acts), "queries")
    row = ot.compare(demo.model, few, {"of queries": entry}, layer=2, position="mean").row("of queries")
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
        ot.compare(demo.model, replace(few, pairs=[]), {"of queries": entry}, layer=2, position="mean")


class Mine(ot.CAA):
    """A class of a user's own."""


@pytest.mark.parametrize("cls", [*CLASSES, Mine], ids=lambda cls: cls.__name__)
def test_the_fit_of_a_class_is_fitted_on_what_it_needs_by_each_seed_that_it_takes(cls, short_training):
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
