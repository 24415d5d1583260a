"""Angular steering: turns by the exponential of their generator, a planted plane, targets, the source's own form."""

import math

import pytest
import torch
from instances import D_MODEL, activations, planted, without_shape_checks
from instances import fitted as instance

import odesteer_tl as ot
from odesteer_tl.remote.payloads import moved

PI = math.pi


def plane():
    return instance("angular").plane.double()


def turn(T, rows):
    """exp(T·J) [d_model, d_model], J the generator of the turn from the first row towards the second."""
    generator = torch.outer(rows[1], rows[0]) - torch.outer(rows[0], rows[1])
    return torch.linalg.matrix_exp(T * generator)


def bearing(a, rows):
    """The angle of a in the plane, from its first row."""
    return torch.atan2(a @ rows[1], a @ rows[0])


def method(**options):
    return ot.Angular(plane(), layer=2, **options)


@pytest.mark.parametrize("T", [0.0, 1e-6, 0.7, -2.0, PI, 9.0])
def test_a_turn_is_the_exponential_of_its_generator(T):
    a, rows = activations(5), plane()
    turned = method().steer(a, T=T)
    torch.testing.assert_close(turned, a @ turn(T, rows).T, rtol=0, atol=1e-6)  # the rows are float32's
    torch.testing.assert_close(turned.norm(dim=1), a.norm(dim=1), rtol=1e-6, atol=0)
    rest = torch.eye(D_MODEL).double() - rows.T @ rows
    torch.testing.assert_close(turned @ rest, a @ rest, rtol=0, atol=1e-6)


def test_turns_are_a_group():
    a = activations(4)
    for one, other in ((0.3, 1.1), (2.0, -2.0), (PI, PI)):
        both = method().steer(method().steer(a, T=one), T=other)
        torch.testing.assert_close(both, method().steer(a, T=one + other), rtol=0, atol=1e-6)
    assert method().steer(a, T=0) is a


def test_rows_of_any_length_and_angle_span_the_plane_from_the_first_towards_the_second():
    rows = activations(2, seed=4)
    a, made = activations(3), ot.Angular(rows)
    first = rows[0] / rows[0].norm()
    second = rows[1] - (rows[1] @ first) * first
    torch.testing.assert_close(made.plane, torch.stack([first, second / second.norm()]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(made.steer(a, T=0.4), a @ turn(0.4, made.plane).T, rtol=0, atol=1e-12)


def test_a_planted_plane_is_found_and_the_turn_between_two_clouds_joins_them():
    """Means r·e₁ and r·(cos g·e₁ + sin g·e₂): b₁ lies along their difference, and b₂ is where both vary most."""
    generator = torch.Generator().manual_seed(2)
    e1, e2 = torch.linalg.qr(torch.randn(D_MODEL, 2, generator=generator)).Q.T
    gap, r = 1.2, 6.0
    middle = torch.nn.functional.normalize(math.cos(gap / 2) * e1 + math.sin(gap / 2) * e2, dim=0)
    low = r * e1
    high = r * (math.cos(gap) * e1 + math.sin(gap) * e2)
    noise = (
        0.05 * torch.randn(2, 400, D_MODEL, generator=generator) + torch.randn(2, 400, 1, generator=generator) * middle
    )
    acts = ot.ContrastiveActivations(high + noise[0], low + noise[1], layer=3)
    found = ot.Angular.fit(acts)
    truth = torch.stack([e1, e2])
    torch.testing.assert_close(found.plane.T @ found.plane, truth.T @ truth, rtol=0, atol=0.02)
    angle = float(bearing(high, found.plane) - bearing(low, found.plane))
    angle = math.atan2(math.sin(angle), math.cos(angle))
    assert abs(angle) == pytest.approx(gap, abs=0.02)
    torch.testing.assert_close(found.steer(low, T=angle), high, rtol=0, atol=0.15)
    aimed = ot.Angular.fit(acts, target=float(bearing(high, found.plane)))
    torch.testing.assert_close(aimed.steer(low, T=PI), high, rtol=0, atol=0.15)


@pytest.mark.parametrize("goal", [0.0, 1.0, -2.5, 20.0])
def test_half_a_turn_reaches_every_target_as_the_source_writes_it(goal):
    a, rows = activations(40), plane()
    inside = (a @ rows.T).norm(dim=1, keepdim=True)
    aim = math.cos(goal) * rows[0] + math.sin(goal) * rows[1]
    expected = a - a @ rows.T @ rows + inside * aim
    for T in (PI, 7.0):
        torch.testing.assert_close(method(target=goal).steer(a, T=T), expected, rtol=0, atol=1e-6)


def test_a_target_is_approached_by_T_and_never_passed():
    a, rows, goal = activations(60), plane(), 0.8
    aimed = method(target=goal)
    gap = (bearing(a, rows) - goal + PI) % (2 * PI) - PI
    for T in (0.3, 1.5, -0.4):
        left = (bearing(aimed.steer(a, T=T), rows) - goal + PI) % (2 * PI) - PI
        expected = gap.sign() * (gap.abs() - T).clamp(0, PI)
        wrong = (left - expected + PI) % (2 * PI) - PI
        assert wrong.abs().max() < 1e-6
    torch.testing.assert_close(aimed.steer(aimed.steer(a, T=0.5), T=0.7), aimed.steer(a, T=1.2), rtol=0, atol=1e-6)


def test_with_a_target_h_is_its_cosine_and_never_falls():
    a, rows, goal = activations(30), plane(), 0.8
    aimed = method(target=goal)
    h = moved(aimed.barrier, dtype=torch.float64)
    torch.testing.assert_close(h.value(a), torch.cos(bearing(a, rows) - goal), rtol=0, atol=1e-6)
    along = aimed.trajectory(a, T=2.0)
    assert along.h.shape == (11, 30) and not along.chatters.any() and (along.h[-1] >= along.h[0]).all()
    slope, v = h.grad(a), aimed.vector_field(a)
    cosine = (slope * v).sum(1) / slope.norm(dim=1) / v.norm(dim=1)
    assert (cosine > 1 - 1e-6).all()  # v climbs h, by a radian per unit of T
    torch.testing.assert_close(v.norm(dim=1), (a @ rows.T).norm(dim=1), rtol=1e-6, atol=0)
    eps = 1e-6
    numeric = (aimed.steer(a, T=eps) - aimed.steer(a, T=-eps)) / (2 * eps)
    torch.testing.assert_close(v, numeric, rtol=0, atol=1e-7)
    backwards = aimed.trajectory(a, T=torch.linspace(-1, -0.1, 30))
    assert not backwards.chatters.any() and (backwards.h[-1] <= backwards.h[0]).all()


@pytest.mark.parametrize("goal", [None, 2.0])
def test_the_adaptive_form_turns_those_on_the_side_of_the_first_row_alone(goal):
    a, rows = activations(40), plane()
    turned, plain = (each.steer(a, T=0.9) for each in (method(target=goal, adaptive=True), method(target=goal)))
    on = a @ rows[0] > 0
    assert 5 < int(on.sum()) < 35
    assert torch.equal(turned[~on], a[~on]) and torch.equal(turned[on], plain[on])
    assert (method(target=goal, adaptive=True).vector_field(a)[~on] == 0).all()


@pytest.mark.parametrize("options", [{}, {"target": 1.0}, {"target": -1.0, "adaptive": True}])
def test_it_travels_and_is_kept_with_its_options(options, tmp_path):
    made = ot.Angular.fit(planted(), **options)
    ot.save(made, tmp_path)
    a, T = activations(6, dtype=torch.float32), torch.tensor([0.1, -1.0, 2.0, 3.0, 0.0, 4.0])
    for other in (ot.load(tmp_path), made.portable()):
        torch.testing.assert_close(other.steer(a, T=T), made.steer(a, T=T), rtol=0, atol=1e-6)
    assert torch.equal(ot.load(tmp_path).plane, made.plane)


def test_one_plane_serves_several_layers_as_in_the_source():
    acts = [planted(layer=layer, seed=layer) for layer in (1, 2, 4)]
    found = ot.Angular.fit_layers(acts, target=0.5, adaptive=True)
    assert [part.layer for part in found.parts] == [1, 2, 4]
    assert all(torch.equal(part.plane, found.parts[0].plane) and part.target == 0.5 for part in found.parts)
    means = [torch.nn.functional.normalize(x.desired.mean(0) - x.undesired.mean(0), dim=0) for x in acts]
    directions = torch.stack(means).double()
    cosines = directions @ directions.T
    first = directions[cosines.sum(1).argmax()]
    torch.testing.assert_close(found.parts[0].plane[0].double(), first, rtol=0, atol=1e-5)
    rest = directions - directions.mean(0)
    rest = rest - torch.outer(rest @ first, first)
    second = torch.linalg.svd(rest).Vh[0]
    assert float((found.parts[0].plane[1].double() @ second).abs()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="at least two layers, got 1"):
        ot.Angular.fit_layers(acts[:1])


def test_what_is_no_plane_no_angle_and_no_strength_is_refused():
    with without_shape_checks():
        for rows, message in ((torch.eye(5)[:3], r"two directions.*got \(3, 5\)"), (torch.ones(2, 5), "in the span")):
            with pytest.raises(ValueError, match=message):
                ot.Angular(rows)
        with pytest.raises(ValueError, match=r"target is an angle in radians.*got nan"):
            ot.Angular(plane(), target=float("nan"))
        line = torch.linspace(-1, 1, 20).unsqueeze(1) * torch.ones(8)
        with pytest.raises(ValueError, match="vary along one direction only"):
            ot.Angular.fit(ot.ContrastiveActivations(line + 3, line * 1.5))
    for call in (method().steer, method().trajectory, method().portable().steer):
        with pytest.raises(
            ValueError,
            match=r"T counts radians here, whatever ‖a‖: pass T, for example T=1\.57, and",
        ):
            call(activations(2), relative_T=0.2)


@pytest.mark.parametrize(
    "options", [{}, {"adaptive": True}, {"target": 0.5}, {"target": 0.5, "adaptive": True}], ids=str
)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-10, 1e10, 1e18])
def test_norms_are_kept_at_every_scale_and_angle(scale, options):
    a, made = scale * activations(5, dtype=torch.float32), ot.Angular.fit(planted(), **options)
    for T in (0.0, 1e-3, math.pi, -2.0, 100.0):
        norms = made.steer(a, T).double().norm(dim=1)
        torch.testing.assert_close(norms, a.double().norm(dim=1), rtol=1e-5, atol=1e-37)
