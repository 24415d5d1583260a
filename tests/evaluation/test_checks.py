"""The checks of `compare`, against closed forms on planted activations."""

import json
import math
from dataclasses import replace

import pytest
import torch
from instances import planted
from sklearn.metrics import roc_auc_score

import odesteer_tl as ot
from odesteer_tl.evaluation.checks import conditions_of
from odesteer_tl.evaluation.displacement import reach


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
    table = ot.compare(None, planted(), {"flat": method}).table()
    assert "flat ‡" in table and "‡ the displacement of the checks cannot be reached" in table


def test_a_method_without_a_layer_is_compared_at_that_of_the_data(held_out):
    near = ot.GradientFlow(Near(planted(60, 60).split(0)[1].undesired))
    assert ot.compare(None, planted(60, 60), {"near": near}).row("near").conditions.displacement > 0.19
