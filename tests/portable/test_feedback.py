"""Laws of the feedback laws, on numbers alone: gaps and gains, sums over layers, what is remembered, what is kept."""

import json
from dataclasses import replace

import pytest
import torch
from instances import without_shape_checks
from safetensors.torch import load_file, save_file
from saved_folders import resealed, tensors_of

import odesteer_tl as ot
from odesteer_tl.data.origin import Origin
from odesteer_tl.parity.table import parity_rows
from odesteer_tl.portable.feedback import Feedback

D, LAYERS = 6, tuple(range(23))


def numbers(seed=0, features=2, layers=LAYERS):
    generator = torch.Generator().manual_seed(seed)
    v, w = torch.randn(2, len(layers), features, D, generator=generator)
    return torch.nn.functional.normalize(v, dim=-1), 5 * torch.rand(len(layers), features, generator=generator), w


def alqr(**fields):
    v, points, w = numbers()
    own = {"directions": v, "set_points": points, "answers": w, "layers": LAYERS, "q": 1.0, "r": 2.0, "q_f": 3.0}
    return ot.ALQR(**{**own, "origin": Origin(d_model=D), **fields})


def spid(kp=0.6, ki=0.2, kd=0.3, **fields):
    v, points, _ = numbers()
    own = {"directions": v, "set_points": points, "layers": LAYERS, "origin": Origin(d_model=D)}
    return ot.SPID(**{**own, "kp": kp, "ki": ki, "kd": kd, **fields})


def states(n=4, seed=1, dtype=torch.float64):
    """What enters each layer, and what leaves it."""
    return torch.randn(2, len(LAYERS), n, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def added(edits, z, a, rows=None):
    """u of every layer in one pass."""
    state = ot.State(torch.arange(z.shape[1]) if rows is None else rows)
    return torch.stack([e.apply(x, y, state) - y for e, x, y in zip(edits, z, a, strict=True)])


def errors(method, z, T):
    """e [layers, n, d_model] as a loop over everything."""
    e = torch.zeros_like(z)
    for k in range(len(z)):
        for i in range(z.shape[1]):
            for v, point in zip(method.directions[k].double(), method.set_points[k].double(), strict=True):
                e[k, i] += (T * point - v @ z[k, i]) * v
    return e


def test_the_rank_one_law_is_the_full_gain():
    """u = −K(z − z'), z' the nearest state at the set-point, for w = K v."""
    v, points, _ = numbers(features=1)
    v = torch.nn.functional.normalize(v.double(), dim=-1)
    K = torch.randn(len(LAYERS), D, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    w = torch.einsum("lij,lfj->lfi", K, v)
    method = alqr(directions=v, set_points=points.double(), answers=w, gains=K)
    z, a = states()
    for k, u in enumerate(added(method.edits(T=1.4), z, a)):
        direction = method.directions[k, 0]
        reference = z[k] + (1.4 * method.set_points[k] - z[k] @ direction).unsqueeze(-1) * direction
        torch.testing.assert_close(reference @ direction, 1.4 * method.set_points[k].expand(4))
        torch.testing.assert_close(u, -(z[k] - reference) @ K[k].T, rtol=1e-10, atol=1e-12)


def test_at_the_set_point_nothing_is_done_and_at_0_the_feature_is_pushed_back():
    method = alqr(**dict(zip(("directions", "set_points", "answers"), numbers(features=1), strict=True)))
    z, a = states()
    v = method.directions.double()
    for T in (0.0, 1.0, -2.0):
        there = z + (T * method.set_points.double().unsqueeze(1) - (z * v).sum(-1, keepdim=True)) * v
        assert added(method.edits(T=T), there, a).abs().max() <= 1e-5  # v is of length 1 in float32
        assert added(spid(ki=0.1).tracking(0.0).edits(T=T), 0 * z, a).abs().max() == 0
    at_zero = added(method.edits(T=0), z, a)
    expected = -(z * v).sum(-1, keepdim=True) * method.answers.double()
    torch.testing.assert_close(at_zero, expected, rtol=1e-6, atol=1e-6)
    assert at_zero.abs().max() > 0.1


@pytest.mark.parametrize("make", [alqr, spid])
def test_what_is_added_is_linear_in_the_strength_and_one_is_for_each_row(make):
    method = make()
    z, a = states(6)
    u = {T: added(method.edits(T=T), z, a) for T in (0.0, 1.0, 2.0, -0.5)}
    torch.testing.assert_close(u[2.0] - u[0.0], 2 * (u[1.0] - u[0.0]))
    torch.testing.assert_close(u[-0.5] - u[0.0], -0.5 * (u[1.0] - u[0.0]))
    rows, T = torch.tensor([2, 0, 0, 1, 2, 1]), torch.tensor([2.0, -0.5, 1.0])
    mixed = added(method.edits(T=T), z, a, rows)
    for token, row in enumerate(rows.tolist()):
        torch.testing.assert_close(mixed[:, token], u[float(T[row])][:, token])


def test_proportional_integral_and_derivative_are_sums_over_layers():
    z, a = states()
    e = errors(spid(), z, 1.2)
    total, change = e.cumsum(0), torch.cat([e[:1], e[1:] - e[:-1]])
    for kp, ki, kd in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.6, 0.2, 0.3)):
        u = added(spid(kp, ki, kd).edits(T=1.2), z, a)
        torch.testing.assert_close(u, kp * e + ki * total + kd * change, rtol=1e-6, atol=1e-6)
    proportional = added(spid(0.7, 0.0, 0.0).edits(T=1.2), z, a)
    regulator = alqr(answers=0.7 * numbers()[0])
    torch.testing.assert_close(proportional, added(regulator.edits(T=1.2), z, a), rtol=1e-6, atol=1e-6)


def test_every_pass_begins_at_0():
    method = spid()
    edits, (z, a) = method.edits(T=1.0), states()
    first = added(edits, z, a)
    added(edits, 3 * z[:, :2], a[:, :2])
    assert torch.equal(added(edits, z, a), first)
    assert torch.equal(
        added(spid(parity=True, ki=0.0, kd=0.0).edits(T=1.0), z, a), added(spid(ki=0.0, kd=0.0).edits(T=1.0), z, a)
    )


def test_parity_forgets_the_sum_at_every_tenth_layer_and_no_error_between_passes():
    method = spid(0.0, 1.0, 0.0, parity=True)
    z, a = states()
    e = errors(method, z, 1.0)
    integral = added(method.edits(T=1.0), z, a)
    assert not integral[[0, 10, 20]].any() and integral[1:10].any() and integral[21:].any()
    expected = torch.cat([p.cumsum(0) - p[:1] for p in (e[:10], e[10:20], e[20:])])
    torch.testing.assert_close(integral, expected, rtol=1e-6, atol=1e-6)

    edits = spid(0.0, 0.0, 1.0, parity=True).edits(T=1.0)
    other, _ = states(seed=2)
    then = errors(method, other, 1.0)
    first, second = added(edits, z, a), added(edits, other, a)
    torch.testing.assert_close(first[0], e[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second[0], then[0] - e[-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second[1:], then[1:] - then[:-1], rtol=1e-6, atol=1e-6)
    fewer = added(edits, z[:, :2], a[:, :2])  # a pass of other tokens
    torch.testing.assert_close(fewer[0], e[0, :2], rtol=1e-6, atol=1e-6)


def test_layers_of_a_subset_forget_by_their_own_number():
    v, points, _ = numbers(layers=(8, 10, 11))
    method = spid(0.0, 1.0, 0.0, directions=v, set_points=points, layers=(8, 10, 11), parity=True)
    z, a = (each[:3] for each in states())
    e = errors(method, z, 1.0)
    torch.testing.assert_close(
        added(method.edits(T=1.0), z, a), torch.stack([e[0], 0 * e[0], e[2]]), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("make", [alqr, spid])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_are_kept_and_what_travels_is_the_method(make, dtype):
    method = make()
    z, a = states(dtype=torch.float64)
    expected = a + added(method.edits(T=0.8), z, a)
    off = {torch.float64: 1e-6, torch.float32: 1e-4}.get(dtype, 0.1)
    for each in (method, method.portable(), type(method.portable())(*method.portable().init_args())):
        state = ot.State(torch.arange(4))
        for edit, x, y, known in zip(each.edits(T=0.8), z.to(dtype), a.to(dtype), expected, strict=True):
            assert (edit.read.name, edit.write.name) == ("resid_pre", "resid_post")
            assert edit.read.layer == edit.write.layer and edit.of_query is None
            new = edit.apply(x, y, state)
            assert new.dtype == dtype
            torch.testing.assert_close(new.double(), known, rtol=off, atol=10 * off)
    assert isinstance(method.portable(), Feedback)


def test_a_low_precision_is_cast_to_once():
    """In bfloat16 u itself would lose what the sum keeps."""
    edit, (z, a) = alqr().edits(T=1.0)[0], states(200, dtype=torch.bfloat16)
    state, exact = ot.State(torch.arange(200)), edit.apply(z[0].float(), a[0].float(), ot.State(torch.arange(200)))
    assert torch.equal(edit.apply(z[0], a[0], state), exact.to(torch.bfloat16))


def test_derivatives_pass_through():
    method = alqr()
    z, a = (each.requires_grad_() for each in states())
    (edit, *_) = method.edits(T=1.0)
    edit.apply(z[0], a[0], ot.State(torch.arange(4))).sum().backward()
    slope = -(method.directions[0].double().T @ method.answers[0].double().sum(-1))
    torch.testing.assert_close(z.grad[0], slope.expand(4, -1), rtol=1e-6, atol=1e-6)
    assert (a.grad[0] == 1).all()
    edits = spid(parity=True).edits(T=1.0)
    for _ in range(2):  # the pass before is not gone through again
        added(edits, z, a).sum().backward()


@pytest.mark.parametrize("make", [alqr, spid])
def test_a_schedule_of_ones_own(make):
    method = make()
    for given, points in (
        (2.5, torch.full((23, 2), 2.5)),
        (torch.arange(23.0), torch.arange(23.0).unsqueeze(1).expand(23, 2)),
        (torch.arange(46.0).reshape(23, 2), torch.arange(46.0).reshape(23, 2)),
        (list(range(23)), torch.arange(23.0).unsqueeze(1).expand(23, 2)),
    ):
        other = method.tracking(given)
        assert torch.equal(other.set_points, points) and torch.equal(other.directions, method.directions)
    z, a = states()
    doubled = method.tracking(2 * method.set_points)
    torch.testing.assert_close(added(doubled.edits(T=1.0), z, a), added(method.edits(T=2.0), z, a))
    for wrong in (torch.ones(22), torch.ones(23, 3), float("nan")):
        with without_shape_checks(), pytest.raises(ValueError, match="A schedule holds"):
            method.tracking(wrong)


@pytest.mark.parametrize("make", [lambda: alqr(gains=torch.randn(23, D, D)), lambda: spid(parity=True)])
def test_it_is_kept_and_moved_like_any_method(make, tmp_path):
    method = make()
    ot.save(method, tmp_path)
    again = ot.load(tmp_path)
    assert type(again) is type(method) and again.origin == method.origin and again.layers == method.layers
    z, a = states()
    assert torch.equal(added(again.edits(T=0.7), z, a), added(method.edits(T=0.7), z, a))
    if isinstance(method, ot.ALQR):
        assert torch.equal(again.gains, method.gains) and (again.q, again.r, again.q_f) == (1.0, 2.0, 3.0)
    assert method.to(dtype=torch.float64).directions.dtype == torch.float64
    for change in ({"layers": [1, 0]}, {"set_points": 3}, {"layers": "many"}):
        config = json.loads((tmp_path / "config.json").read_text())
        config["tree"]["method"].update(change)
        (tmp_path / "config.json").write_text(json.dumps(config))
        with without_shape_checks(), pytest.raises(ValueError, match=str(tmp_path)):
            ot.load(tmp_path)
        ot.save(method, tmp_path)


@pytest.mark.parametrize("make", [alqr, spid])
def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(make, tmp_path):
    method = make()
    with pytest.raises(ValueError, match=r"holds NaN or inf in method\.set_points"):
        ot.save(replace(method, set_points=method.set_points / 0), tmp_path)
    far = replace(method, set_points=method.set_points * 0 + 3e38)
    with pytest.raises(ValueError, match=r"What is to be saved holds .* do not fit: layer 0 gives"):
        ot.save(far, tmp_path)
    ot.save(method, tmp_path)
    tensors = load_file(tensors_of(tmp_path))
    save_file(tensors | {"tree.method.set_points": far.set_points.contiguous()}, tensors_of(tmp_path))
    resealed(tmp_path)
    with pytest.raises(ValueError, match="do not fit: layer 0 gives"):
        ot.load(tmp_path)


@pytest.mark.parametrize("make", [alqr, spid])
def test_what_it_has_not_it_says(make):
    method, a = make(), torch.randn(2, D)
    assert method.layer is None and method.barrier is None and method.speed is None and method.several
    for act in (lambda: method.steer(a, T=1.0), lambda: method.vector_field(a)):
        with pytest.raises(ValueError, match=r"reads the input of each block.*ot\.steering"):
            act()
    for each in (method, method.portable()):
        for strength, said in (
            ({}, "either T or relative_T"),
            ({"relative_T": 0.2}, "set-points.*relative_T has no meaning"),
            ({"T": 1.0, "layer": 3}, "leave layer= out"),
            ({"T": float("inf")}, "finite"),
        ):
            with pytest.raises(ValueError, match=said):
                each.edits(**strength)
        with pytest.raises(ValueError, match="fitted at d_model 6"):
            each.edits(T=1.0)[0].apply(a[:, 1:], a[:, 1:], ot.State(torch.arange(2)))
    with pytest.raises(ValueError, match=r"use ot\.steering"):
        ot.steering_hook(method, 1.0)


@pytest.mark.parametrize(
    "make, fields, said",
    [
        (alqr, {"layers": LAYERS[::-1]}, "ascending"),
        (alqr, {"layers": ()}, "at least one"),
        (alqr, {"layers": (-1, *LAYERS[1:])}, "counted from 0"),
        (alqr, {"layers": LAYERS[1:]}, "22 layers need"),
        (alqr, {"set_points": torch.ones(23, 1)}, "23 layers need"),
        (alqr, {"answers": torch.ones(23, 1, D)}, "answers have the shape"),
        (alqr, {"gains": torch.ones(22, D, D)}, "one matrix per layer"),
        (alqr, {"r": 0.0}, "r is a weight"),
        (alqr, {"origin": Origin(d_model=7)}, "d_model of their origin is 7"),
        (spid, {"kp": float("nan")}, "kp is a finite number"),
        (spid, {"kd": "1"}, "kd is a finite"),
    ],
)
def test_numbers_that_do_not_belong_together_are_refused(make, fields, said):
    with without_shape_checks(), pytest.raises(ValueError, match=said):
        make(**fields)


def test_the_parity_rows_steer_by_all_that_a_loop_has():
    assert isinstance(parity_rows()["A-LQR"]("llama"), ot.ALQR)
    method = parity_rows()["S-PID"]("llama")
    assert min(method.kp, method.ki, method.kd) > 0 and replace(method, ki=0.5).ki == 0.5
