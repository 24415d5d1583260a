"""Laws of the figures: what is drawn is what was given, read back from the artists; every axis says what it shows."""

import io
import math
import sys
from dataclasses import replace

import matplotlib.style
import numpy as np
import pytest
import torch
from instances import planted
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image

import odesteer_tl as ot
from odesteer_tl.control import Bound, Linearity, Tracking
from odesteer_tl.evaluation.calibration import Measured
from odesteer_tl.evaluation.data_check.report import Area
from odesteer_tl.evaluation.layer_choice import Candidate
from odesteer_tl.evaluation.separation import separations
from odesteer_tl.evaluation.sweeps.plan import Plan
from odesteer_tl.evaluation.sweeps.result import Sweep, SweptRow
from odesteer_tl.flows.barriers import LogRatioBarrier
from odesteer_tl.plots.paths import plane_of
from odesteer_tl.plots.picture import COLOURS, DESIRED, UNDESIRED


@pytest.fixture(scope="module")
def method():
    return ot.ODESteer.fit(planted())


@pytest.fixture(scope="module")
def path(method):
    return method.trajectory(planted().undesired[:7], T=2.0)


def chosen(layer=4, budget=0.1, **of_best):
    """A choice between three candidates, one of which was not steered."""
    best = {"auc": 0.8, "auc_error": 0.05, "shift": 1.5, "shift_error": 0.2} | of_best
    candidates = (
        Candidate(2, "last", 0.7, 0.04, 0.5, 0.3),
        Candidate(layer, "last", **best),
        Candidate(4, "mean", 0.9, 0.02),
    )
    acts = planted()
    return ot.LayerChoice(layer, "last", ot.CAA.fit(acts), acts, candidates, budget, 1.0)


def calibration():
    curve = tuple(Measured(value, value**2, value**2, 3 * value**2) for value in (0.1, 0.2, 0.4))
    strength = ot.Strength(relative_T=0.3)
    return ot.Calibration(
        ot.CAA.fit(planted()), strength, "relative_T", 0.09, 0.09, True, True, curve, None, 10, 3, 1.0
    )


def tracked(left=0.5):
    """Two features at three layers of four texts; what is `left` of the error grows with the layer."""
    goals = torch.tensor([[2.0, 0.0], [4.0, 0.0], [6.0, 0.0]])
    off = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) * torch.tensor([0.5, 1.0, 1.5, 1.0]).view(1, 4, 1)
    shares = left * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    return Tracking((0, 2, 5), goals, goals.unsqueeze(1) - off, goals.unsqueeze(1) - shares * off)


def linear():
    own = torch.tensor([[0.01, 0.1], [0.02, 0.2], [0.03, 0.3]])
    return Linearity((1, 2, 4), (0.03, 0.3), own[:, 0], own[:, 1], own, 2 * own)


def bounded():
    """Of two texts at three layers; at the first there is no error, as where texts begin alike."""
    one = torch.tensor([[0.0, 0.0], [1.0, 3.0], [2.0, 4.0]])
    return Bound((0, 1, 2), one, one, 2 * one, 3 * one)


def swept():
    """Two methods at a layer each, of which the second breaks a guardrail at its second strength."""
    plan = Plan(
        ("A", "B"), (2,), ("last",), dict.fromkeys("AB", (0.1, 0.2)), False, ("kl",), "share", {}, (0,), 1, 2, 1, 4
    )
    rows = [SweptRow("no steering", None, None, 0.0, "T", 0.0, {"kl": 0.0}, [[0.3, 0.3]], ())]
    for name, bad in (("A", ()), ("B", ("kl",))):
        for at in (0.1, 0.2):
            own = bad if at == 0.2 else ()
            rows.append(SweptRow(name, 2, "last", at, "T", at, {"kl": at**2}, [[0.3 + at, 0.5 + at]], own))
    return Sweep(plan, (), tuple(rows))


def checked():
    """AUCs of a baseline and of h at a place."""
    found = Area("length", 0.52, 0.04), Area("h at layer 2, mean", 0.81, 0.03)
    return ot.DataCheck((), (), found, (2, "mean"), (40, 40))


def every(method, path):
    """One of each figure."""
    found = separations([planted(layer=layer) for layer in (1, 2)], {"means": ot.CAA.fit, "linear": ot.ITI.fit})
    return {
        "layers": ot.plots.layers(chosen()),
        "separation": ot.plots.separation(found),
        "level_sets": ot.plots.level_sets(method, path, planted()),
        "along_path": ot.plots.along_path(path),
        "log_odds": ot.plots.log_odds(method, planted()),
        "calibration": ot.plots.calibration(calibration()),
        "shift": ot.plots.shift({"CAA": [chosen(), chosen(budget=0.2)]}),
        "shift_by_auc": ot.plots.shift_by_auc({"CAA": chosen(), "ITI": chosen(shift=1.0)}),
        "areas": ot.plots.areas(checked()),
        "sweep": ot.plots.sweep(swept()),
        "by_token": ot.plots.by_token(torch.rand(3, 2), ["a", "b"]),
        "tracking": ot.plots.tracking({"A": tracked(), "B": tracked(0.2)}),
        "linearity": ot.plots.linearity(linear()),
        "bound": ot.plots.bound(bounded()),
        "by_layer": ot.plots.by_layer({"a": [1.0, 2.0], "b": [2.0, 3.0]}, [0, 3], "nats"),
    }


@pytest.fixture(scope="module")
def figures(method, path):
    """`every` in the usual style, made once, for tests that only look."""
    return every(method, path)


def points(axes):
    """What is drawn as (x, y) with a label: lines, and the lines of error bars."""
    lines = [(line.get_label(), line) for line in axes.lines]
    lines += [(container.get_label(), container[0]) for container in axes.containers]
    return {
        str(label): np.column_stack(line.get_data(orig=False))
        for label, line in lines
        if not str(label).startswith("_")
    }


def halves(axes):
    """Half the height of every vertical error bar, by label."""
    found = {}
    for container in axes.containers:
        segments = container[2][-1].get_segments()
        found[container.get_label()] = [(segment[1, 1] - segment[0, 1]) / 2 for segment in segments]
    return found


def test_every_figure_is_in_the_table_and_the_other_way_round(figures):
    calls = set(ot.plots.__all__) - {"displacements"}
    assert calls == set(figures)
    assert ot.plots.__doc__ is not None and all(f"`ot.plots.{name}(" in ot.plots.__doc__ for name in calls)


def test_every_axis_says_what_it_shows_and_lines_have_a_legend(figures):
    for name, figure in figures.items():
        shared = bool(figure.axes[0].get_shared_y_axes().get_siblings(figure.axes[0])[1:])
        for number, axes in enumerate(figure.axes):
            is_bar = hasattr(axes, "_colorbar")
            assert axes.get_xlabel() or is_bar, name
            assert axes.get_ylabel() or (shared and number), name
        if any(points(axes) for axes in figure.axes):
            assert any(axes.get_legend() for axes in figure.axes), name


def test_paper_is_white_and_ink_dark_whatever_the_users_style(method, path, figures):
    def check(drawn):
        for name, figure in drawn.items():
            image = imread(io.BytesIO(figure._repr_png_()))
            assert np.allclose(image[0, :, :3], 1, atol=0.02) and np.allclose(image[:, 0, :3], 1, atol=0.02), name
            assert image.shape[2] == 3 or np.allclose(image[..., 3], 1), name
            for axes in figure.axes:
                texts = (axes.xaxis.label, axes.yaxis.label, axes.title, *axes.get_xticklabels())
                assert all(max(to_rgb(text.get_color())) < 0.2 for text in texts), name

    check(figures)
    with matplotlib.style.context("dark_background"):
        check(every(method, path))


def test_a_figure_is_small_and_needs_no_pyplot(figures):
    for name, figure in figures.items():
        assert len(figure._repr_png_()) < 50_000, name
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()


def test_few_colours_are_still_the_right_ones(method, path):
    """Also those that few pixels have, as the ends of a scale and the marks."""
    figure, exact = ot.plots.level_sets(method, path, planted()), io.BytesIO()
    figure.savefig(exact, format="png", dpi=80)
    drawn, kept = (Image.open(file).convert("RGB") for file in (exact, io.BytesIO(figure._repr_png_())))
    off = np.abs(np.asarray(drawn, dtype=int) - np.asarray(kept, dtype=int))
    assert off.max() <= 16
    assert abs(np.asarray(kept, dtype=int)[0, 0] - 255).max() <= 3


def luminance(colour):
    """Relative luminance of WCAG 2."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


DEUTERANOPE = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
PROTANOPE = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])
"""Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB."""


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPE, PROTANOPE], ids=["all", "deuteranope", "protanope"])
def test_colours_differ_for_every_eye_and_stand_out_from_paper(eye):
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(one)] for one in COLOURS]
    seen = [eye @ np.array(one) for one in linear]
    for i, one in enumerate(seen):
        assert 1.05 / (luminance(COLOURS[i]) + 0.05) > 2
        assert all(np.linalg.norm(one - other) > 0.15 for other in seen[:i]), COLOURS[i]


def test_calibration_draws_the_curve_its_budget_and_the_strength():
    drawn = points(ot.plots.calibration(calibration()).axes[0])
    values = np.array([0.1, 0.2, 0.4])
    np.testing.assert_allclose(drawn["mean over tokens"], np.column_stack([values, values**2]))
    np.testing.assert_allclose(drawn["95 % quantile"], np.column_stack([values, 3 * values**2]))
    assert set(drawn["budget"][:, 1]) == {0.09} and set(drawn["strength found"][:, 0]) == {0.3}


def test_layers_draws_every_candidate_and_rings_the_choice():
    shifts, aucs = ot.plots.layers(chosen()).axes
    np.testing.assert_allclose(points(shifts)["last"], [[2, 0.5], [4, 1.5]])
    assert "mean" not in points(shifts) or len(points(shifts)["mean"]) == 0  # was not steered
    np.testing.assert_allclose(points(aucs)["mean"], [[4, 0.9]])
    np.testing.assert_allclose(halves(shifts)["last"], [1.96 * 0.3, 1.96 * 0.2])
    np.testing.assert_allclose(points(shifts)["chosen"], [[4, 1.5]])


def test_separation_draws_aucs_and_their_intervals():
    found = separations([planted(layer=layer, seed=layer) for layer in (1, 5)], {"CAA": ot.CAA.fit, "ITI": ot.ITI.fit})
    (axes,) = ot.plots.separation(found).axes
    for name in ("CAA", "ITI"):
        own = [one for one in found if one.name == name]
        np.testing.assert_allclose(points(axes)[name][:, 1], [one.auc for one in own])
        np.testing.assert_allclose(points(axes)[name][:, 0], [1, 5], atol=0.1)
        np.testing.assert_allclose(halves(axes)[name], [1.96 * one.error for one in own])
    with pytest.raises(ValueError, match="layer is known"):
        ot.plots.separation([])


def test_along_path_draws_the_median_of_h(path):
    (axes,) = ot.plots.along_path({"up": path}).axes
    np.testing.assert_allclose(points(axes)["up, median"][:, 0], np.linspace(0, 1, 11), atol=1e-6)
    np.testing.assert_allclose(points(axes)["up, median"][:, 1], path.h.median(dim=1).values, rtol=1e-6)
    thin = [line.get_ydata() for line in axes.lines if str(line.get_label()).startswith("_child")][:7]
    np.testing.assert_allclose(thin, path.h.T, rtol=1e-6)
    assert axes.get_ylabel() == "h = log p₊/p₋, nats"
    assert ot.plots.along_path(path, label="h, metres").axes[0].get_ylabel() == "h, metres"
    nothing = ot.Trajectory(path.activations, None)
    with pytest.raises(ValueError, match="has no h"):
        ot.plots.along_path(nothing)


class Bowl:
    """h(a) = 3 − (a₀² + a₁²), whose level sets in the first two coordinates are circles."""

    def value(self, a):
        return 3 - a[..., 0] ** 2 - a[..., 1] ** 2


def test_level_sets_are_those_of_h_and_paths_lie_where_they_are():
    own = ot.GradientFlow(Bowl(), layer=0)
    start = torch.tensor([[2.0, 0.5, 1, 0], [-1.5, 1.0, -1, 0]])
    path = own.trajectory(start, T=0.5)
    plane = torch.eye(4)[:2]
    figure = ot.plots.level_sets(own, path, plane=plane, label="h, metres")
    assert figure.axes[-1].get_ylabel() == "h, metres"
    axes, centre = figure.axes[0], start.mean(0)[:2]
    walked = sorted(line.get_xydata()[0, 0] for line in axes.lines)
    np.testing.assert_allclose(walked, sorted((start[:, :2] - centre)[:, 0]), atol=1e-6)
    contours = next(one for one in axes.collections if hasattr(one, "levels"))
    checked = 0
    for level, curve in zip(contours.levels, contours.get_paths(), strict=True):
        for x, y in curve.vertices:
            assert 3 - (x + centre[0]) ** 2 - (y + centre[1]) ** 2 == pytest.approx(level, abs=0.05)
            checked += 1
    assert checked > 100
    mesh, ends = axes.collections[0], axes.collections[-1]
    x, y = (mesh.get_coordinates()[..., k] for k in (0, 1))
    middle = ((x[:-1, :-1] + x[1:, 1:]) / 2, (y[:-1, :-1] + y[1:, 1:]) / 2)
    truth = 3 - (middle[0] + float(centre[0])) ** 2 - (middle[1] + float(centre[1])) ** 2
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(truth.shape), truth, atol=1e-4)
    np.testing.assert_allclose(ends.get_array(), path.h[-1], atol=1e-5)


def test_the_plane_is_orthonormal_holds_the_mean_displacement_and_serves_parallel_paths():
    for method in (ot.CAA.fit(planted()), ot.ODESteer.fit(planted())):
        moved = method.trajectory(planted().undesired, T=1.0).activations
        plane = plane_of(moved)
        torch.testing.assert_close(plane @ plane.T, torch.eye(2), rtol=0, atol=1e-5)
        mean = (moved[-1] - moved[0]).mean(0)
        torch.testing.assert_close(plane[0], mean / mean.norm())


def test_log_odds_of_a_true_log_ratio_lie_on_the_diagonal_and_those_of_half_of_it_do_not():
    """N(m, 1) against N(−m, 1): h = 2ma exactly. Unequal sides are no other odds."""
    generator = torch.Generator().manual_seed(0)
    sides = (torch.randn(n, 1, generator=generator) + m for n, m in ((9000, 0.7), (3000, -0.7)))
    acts = ot.ContrastiveActivations(*sides)
    truth = LogRatioBarrier(ot.Linear(normalize=False).fit(acts.desired), torch.tensor([1.4]), 0.0)
    half = LogRatioBarrier(truth.features, truth.weight / 2, 0.0)
    (axes,) = ot.plots.log_odds({"true": truth, "half": half}, acts, bins=10).axes
    drawn = points(axes)
    error = np.array(halves(axes)["true"]) / 1.96
    off = np.abs(drawn["true"][:, 1] - drawn["true"][:, 0]) / error
    assert np.mean(off < 2.5) >= 0.9
    slope = np.polyfit(drawn["half"][:, 0], drawn["half"][:, 1], 1)[0]
    assert slope == pytest.approx(2, rel=0.1)


def test_shift_is_by_budget_in_order_and_shift_by_auc_refuses_several():
    several = [chosen(budget=0.4, shift=3.0), chosen(budget=0.1), chosen(budget=0.2, shift=2.0)]
    (axes,) = ot.plots.shift({"CAA": several}).axes
    np.testing.assert_allclose(points(axes)["CAA"], [[0.1, 1.5], [0.2, 2.0], [0.4, 3.0]])
    np.testing.assert_allclose(halves(axes)["CAA"], [1.96 * 0.2] * 3)
    (axes,) = ot.plots.shift_by_auc({"CAA": chosen()}).axes
    np.testing.assert_allclose(points(axes)["CAA, last"], [[0.7, 0.5], [0.8, 1.5]])
    with pytest.raises(ValueError, match="at one budget"):
        ot.plots.shift_by_auc({"CAA": chosen(), "ITI": chosen(budget=0.2)})
    with pytest.raises(ValueError, match="empty"):
        ot.plots.shift({"CAA": []})


def test_areas_draws_each_with_its_interval_the_first_at_the_top(figures):
    (axes,) = figures["areas"].axes
    (bars,) = axes.containers
    np.testing.assert_allclose(np.column_stack(bars[0].get_data(orig=False)), [[0.52, 0], [0.81, 1]])
    ends = [segment[:, 0] for segment in bars[2][0].get_segments()]
    np.testing.assert_allclose(
        ends, [[0.52 - 1.96 * 0.04, 0.52 + 1.96 * 0.04], [0.81 - 0.0588, 0.81 + 0.0588]], atol=1e-5
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["length", "h at layer 2, mean"]
    assert axes.yaxis_inverted()
    with pytest.raises(ValueError, match="measured none"):
        ot.plots.areas(replace(checked(), areas=()))


def test_sweep_draws_means_with_intervals_costs_and_what_breaks_a_guardrail(figures):
    primary, cost = figures["sweep"].axes
    for name in ("A, layer 2", "B, layer 2"):
        np.testing.assert_allclose(points(primary)[name], [[0.1, 0.5], [0.2, 0.6]])
        np.testing.assert_allclose(points(cost)[name], [[0.1, 0.01], [0.2, 0.04]])
        np.testing.assert_allclose(halves(primary)[name], [0.1, 0.1])  # of two prompts: the least and the largest
    for axes, height in ((primary, 0.6), (cost, 0.04)):
        (hollow,) = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        np.testing.assert_allclose(np.column_stack(hollow.get_data()), [[0.2, height]])
    with pytest.raises(ValueError, match="no"):
        ot.plots.sweep(replace(swept(), rows=swept().rows[:1]))


def test_a_map_of_tokens_shows_its_numbers_and_displacements_are_those_of_the_caches():
    generator = torch.Generator().manual_seed(0)
    before = {f"blocks.{layer}.hook_resid_post": torch.randn(2, 4, 6, generator=generator) for layer in (0, 2, 10)}
    after = {name: value.clone() for name, value in before.items()}
    after["blocks.10.hook_resid_post"][1, 2] *= 1.5
    before["blocks.2.hook_attn_out"] = torch.zeros(1)
    moved = ot.plots.displacements(before, after, row=1)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[2, 2] = 0.5
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    figure = ot.plots.by_token({"one": moved, "two": 2 * moved}, ["a", "$x$", "<b>", "d"])
    for axes, factor in zip(figure.axes, (1, 2), strict=False):
        np.testing.assert_allclose(axes.images[0].get_array(), factor * moved, atol=1e-6)
        assert axes.images[0].get_clim() == pytest.approx((0, 1))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", r"\$x\$", "<b>", "d"]
    with pytest.raises(ValueError, match=r"5 tokens need"):
        ot.plots.by_token(moved, list("abcde"))
    with pytest.raises(ValueError, match="same layers"):
        ot.plots.displacements(before, {})


def test_a_method_without_a_barrier_is_refused(path):
    chance = ot.RandomDirection.fit(planted())
    with pytest.raises(ValueError, match="no barrier"):
        ot.plots.level_sets(chance, path)
    with pytest.raises(ValueError, match="no barrier"):
        ot.plots.log_odds(chance, planted())


def test_desired_is_blue_and_undesired_vermilion_in_the_marks_too(method, path):
    acts = planted()
    lines = ot.plots.level_sets(method, path, acts).axes[0].lines
    marks = {line.get_color(): len(line.get_xdata()) for line in lines if line.get_linestyle() == "None"}
    assert marks == {DESIRED: len(acts.desired), UNDESIRED: len(acts.undesired)}
    assert not math.isnan(sum(marks.values()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision_and_one_activation_alone_are_drawn(dtype):
    acts = planted()
    half = replace(acts, desired=acts.desired.to(dtype), undesired=acts.undesired.to(dtype))
    method = ot.ODESteer.fit(acts).to(dtype=torch.float64 if dtype == torch.float64 else None)
    ot.plots.log_odds(method, half)
    alone = method.trajectory(acts.undesired[0].to(torch.float64 if dtype == torch.float64 else torch.float32), 1.0)
    (axes,) = ot.plots.along_path(alone).axes
    assert axes.lines[0].get_ydata() == pytest.approx(alone.h.float().numpy(), rel=1e-5)
    ot.plots.level_sets(method, alone, half)


def test_tracking_draws_the_means_the_set_points_and_what_is_left_of_the_error():
    first, second, last = ot.plots.tracking({"A": tracked(), "B": tracked(0.1)}).axes
    assert (first.get_title(), second.get_title()) == ("A", "B")
    np.testing.assert_allclose(points(first)["set-point β*"], [[0, 2], [2, 4], [5, 6]])
    np.testing.assert_allclose(points(first)["β, open loop"], [[0, 1], [2, 2], [5, 3]], rtol=1e-6)
    np.testing.assert_allclose(points(first)["β, closed loop"], [[0, 1.5], [2, 2], [5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(points(last)["A"], [[0, 0.5], [2, 1.0], [5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(points(last)["B"], [[0, 0.1], [2, 0.2], [5, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(points(ot.plots.tracking(tracked(), 1).axes[0])["set-point β*"][:, 1], 0)
    with pytest.raises(ValueError, match="A has 2 features; feature=2"):
        ot.plots.tracking({"A": tracked()}, 2)


def test_linearity_draws_both_similarities_every_length_and_the_mean_at_the_shortest():
    alike, errors = ot.plots.linearity(linear()).axes
    np.testing.assert_allclose(points(alike)["J"], [[1, 0.01], [2, 0.02], [4, 0.03]])
    np.testing.assert_allclose(points(alike)["J − I"], [[1, 0.1], [2, 0.2], [4, 0.3]])
    np.testing.assert_allclose(points(errors)["own J, 0.3‖z‖"], [[1, 0.1], [2, 0.2], [4, 0.3]])
    np.testing.assert_allclose(points(errors)["mean J, 0.03‖z‖"], [[1, 0.02], [2, 0.04], [4, 0.06]])


def test_bound_draws_means_and_by_layer_what_it_is_given():
    drawn = points(ot.plots.bound(bounded()).axes[0])
    np.testing.assert_allclose(drawn["‖δz‖"], [[0, np.nan], [1, 2], [2, 3]])  # 0 has no logarithm
    np.testing.assert_allclose(drawn["bound"], [[0, np.nan], [1, 12], [2, 18]])
    np.testing.assert_allclose(drawn["without the drift"], [[0, np.nan], [1, 6], [2, 9]])
    figure = ot.plots.by_layer({"a": torch.tensor([1.0, 2.0])}, [0, 3], "nats", log=True)
    np.testing.assert_allclose(points(figure.axes[0])["a"], [[0, 1], [3, 2]])
    assert figure.axes[0].get_ylabel() == "nats" and figure.axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="2 layers need as many numbers"):
        ot.plots.by_layer([1.0], [0, 3], "nats")
