"""A flow with `until`: each activation walks while h is lower, and stays where it is from there on."""

import json

import numpy as np
import pytest
import torch
from instances import (
    ALL_BARRIERS,
    BARRIERS,
    REDUCIBLE,
    Own,
    activations,
    in_float64,
    log_ratio,
    planted,
    without_shape_checks,
)

from odesteer_tl import load, save
from odesteer_tl.data.origin import Origin
from odesteer_tl.data.storage import tree_digest
from odesteer_tl.flows.barriers import with_grad
from odesteer_tl.flows.features import Linear, Polynomial
from odesteer_tl.flows.fields import Gradient, UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.flows.solvers import solver_named
from odesteer_tl.methods import GradientFlow, ODESteer
from odesteer_tl.remote.checks import check_travels


def level_of(barrier, a, share=0.5):
    """An h that `share` of the activations have reached."""
    return float(barrier.value(a).quantile(1 - share))


def walked(barrier, a, T, steps, until):
    """One activation at a time, by autograd: Euler steps at unit speed while h < until, none beyond."""
    ends = []
    for one in a:
        for _ in range(steps):
            x = one.clone().requires_grad_()
            h = barrier.value(x)
            if float(h.detach()) >= until:
                break
            (g,) = torch.autograd.grad(h, x)
            rest = (until - float(h.detach())) / float(g.norm())
            one = one + min(T / steps, rest) * g / g.norm()
        ends.append(one)
    return torch.stack(ends)


@pytest.mark.parametrize("name", ALL_BARRIERS)
def test_what_knows_the_gradient_of_h_knows_h(name):
    barrier, a = BARRIERS[name](), activations(3, 4)
    function = UnitGradient(barrier, until=0.0).gradient_function
    torch.testing.assert_close(function.h(a), barrier.value(a), rtol=1e-9, atol=1e-9)  # sums in another order


@pytest.mark.parametrize("name", ALL_BARRIERS)
def test_every_activation_walks_until_h_is_reached(name):
    barrier, a = BARRIERS[name](), activations(12)
    until = level_of(barrier, a)
    expected = walked(barrier, a, 1.5, 8, until)
    flow = Flow(UnitGradient(barrier, until), steps=8)
    torch.testing.assert_close(flow(a, 1.5), expected, rtol=0, atol=1e-8)
    ways = (expected - a).norm(dim=-1)
    assert (ways == 0).sum() == 6 and (ways > 0).sum() == 6
    stays = barrier.value(a) >= until
    assert torch.equal(UnitGradient(barrier, until)(a)[stays], torch.zeros_like(a[stays]))


def test_some_stop_on_the_way():
    """Otherwise the law above would be one of a gate at the start."""
    barrier, a = in_float64(log_ratio("polynomial-2-curved")), activations(40)
    until = level_of(barrier, a, 0.2)
    plain, stopped = (Flow(UnitGradient(barrier, level), steps=20)(a, 3.0) for level in (None, until))
    moved = ~torch.isclose(stopped, a).all(-1)
    early = moved & ~torch.isclose(stopped, plain).all(-1)
    assert early.sum() > 10
    missed, way = (barrier.value(stopped[early]) - until).abs(), (until - barrier.value(a[early])).abs()
    assert (missed < 0.02 * way.max()).all()


@pytest.mark.parametrize("T", [0.5, 1e3])
def test_a_line_is_walked_to_the_very_level_however_long_the_way_may_be(T):
    barrier, a = in_float64(log_ratio("linear-raw")), activations(30)
    until, h = level_of(barrier, a), barrier.value(a)
    end = Flow(UnitGradient(barrier, until), steps=4)(a, T)
    farthest = h + T * barrier.weight.norm()
    torch.testing.assert_close(barrier.value(end), torch.maximum(h, farthest.clamp(max=until)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_solvers_that_look_beyond_the_level_are_refused(solver):
    """Their midpoint may lie where the field is 0, so that nothing moves."""
    for make in (
        lambda: Flow(UnitGradient(BARRIERS["own"](), 0.0), solver_named(solver)),
        lambda: ODESteer.fit(planted(), until=0.0, solver=solver),
        lambda: GradientFlow(Own(), layer=1, until=0.0, solver=solver),
    ):
        with pytest.raises(ValueError, match='until needs solver="euler"'):
            make()


def test_a_way_back_begins_below_the_level_only():
    barrier, a = in_float64(log_ratio("linear-raw")), activations(30)
    until = level_of(barrier, a)
    end, stays = Flow(UnitGradient(barrier, until))(a, -1.0), barrier.value(a) >= until
    assert torch.equal(end[stays], a[stays])
    torch.testing.assert_close(end[~stays], Flow(UnitGradient(barrier))(a[~stays], -1.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", REDUCIBLE)
def test_reduced_coordinates_stop_where_direct_ones_do(name):
    barrier, a = in_float64(log_ratio(name)), activations(3, 4)
    field = UnitGradient(barrier, level_of(barrier, a.flatten(0, 1)))
    ends = [Flow(field, steps=6, coordinates=how)(a, 2.0) for how in ("direct", "reduced")]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["polynomial-2-curved", "sketch-3-unit", "own"])
def test_the_field_is_the_gradient_of_the_smaller_of_h_and_until(name):
    barrier, a = BARRIERS[name](), activations(12)
    until = level_of(barrier, a)
    x = a.clone().requires_grad_()
    (expected,) = torch.autograd.grad(barrier.value(x).clamp(max=until).sum(), x)
    torch.testing.assert_close(Gradient(barrier, until)(a), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("features", [Linear(), Polynomial(), Polynomial(3, rank=8)], ids=["linear", "2", "3"])
def test_what_travels_stops_too(features):
    a = activations(30, dtype=torch.float32)
    until = level_of(ODESteer.fit(planted(), features=features).barrier, a)
    method = ODESteer.fit(planted(), features=features, until=until)
    sent = method.portable()
    check_travels(sent)
    moved = (method.steer(a, T=2.0) - a).norm(dim=-1)
    assert (moved == 0).any() and (moved > 0).any()
    torch.testing.assert_close(sent.steer(a, T=2.0), method.steer(a, T=2.0), rtol=0, atol=1e-4)


def test_a_barrier_of_ones_own_travels_with_its_level():
    a = activations(20)
    method = GradientFlow(Own(), layer=1, until=level_of(with_grad(Own()), a))
    torch.testing.assert_close(method.portable().steer(a, T=1.0), method.steer(a, T=1.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(method.steer(a, T=1.0), walked(Own(), a, 1.0, 10, method.until), rtol=0, atol=1e-10)


def test_desired_is_the_median_of_h_over_the_desired_activations():
    acts = planted()
    method, plain = ODESteer.fit(acts, until="desired"), ODESteer.fit(acts)
    h = plain.barrier.value(acts.desired.float())
    assert (h < method.until).sum() < len(h) / 2 <= (h <= method.until).sum()
    a = activations(8)
    torch.testing.assert_close(ODESteer.fit(acts, until=1e9).steer(a, T=1.0), plain.steer(a, T=1.0))  # none reaches it
    assert torch.equal(ODESteer.fit(acts, until=-1e9).steer(a, T=1.0), a)


@pytest.mark.parametrize("cls", [ODESteer, GradientFlow])
def test_the_level_is_kept_in_a_folder_and_folders_without_one_are_read(cls, tmp_path):
    fit, a = ODESteer.fit(planted(), until="desired"), activations(20)
    method = cls(fit.barrier, origin=fit.origin, until=fit.until)
    save(method, tmp_path / "with")
    kept = load(tmp_path / "with")
    assert kept.until == method.until and torch.equal(kept.steer(a, T=2.0), method.steer(a, T=2.0))
    save(cls(fit.barrier, origin=fit.origin), tmp_path / "without")
    config = tmp_path / "without" / "config.json"
    tree = json.loads(config.read_text())
    del tree["tree"]["method"]["until"]  # as a version wrote it that did not know it
    config.write_text(json.dumps(tree | {"tree_sha256": tree_digest(tree["tree"])}))
    assert load(tmp_path / "without").until is None


@pytest.mark.parametrize("level", ["h", float("nan"), float("inf"), True, np.True_])
def test_what_is_no_level_is_refused(level):
    for make in (lambda: UnitGradient(Own(), level), lambda: GradientFlow(Own(), layer=1, until=level)):
        with without_shape_checks(), pytest.raises(ValueError, match="until is the h at which an activation stops"):
            make()


def test_a_value_of_another_shape_is_refused():
    class Column(Own):
        def value(self, a):
            return super().value(a).unsqueeze(-1)

    with pytest.raises(ValueError, match=r"one number per activation, \(5,\); .* the shape \(5, 1\)"):
        GradientFlow(Column(), layer=1, until=1.0).steer(activations(5), T=1.0)


def test_an_h_that_overflows_is_not_high():
    fit = ODESteer.fit(planted(), features=Polynomial(3, normalize=False), until=0.0)
    a = 1e14 * activations(6, dtype=torch.float32)
    moved = (fit.steer(a, relative_T=0.5) - a).norm(dim=-1) / a.norm(dim=-1)
    assert not fit.barrier.value(a).isfinite().all()
    assert (moved[~(fit.barrier.value(a) >= 0)] > 0.4).all()


@pytest.mark.parametrize("level", [np.float32(0.25), torch.tensor(0.25), 0.25])
def test_numbers_of_any_kind_are_kept_as_numbers(level, tmp_path):
    barrier = ODESteer.fit(planted()).barrier
    with without_shape_checks():
        for method in (ODESteer(barrier, Origin(), until=level), GradientFlow(barrier, until=level)):
            assert type(method.until) is float and method.until == 0.25
            save(method, tmp_path / type(method).__name__)
