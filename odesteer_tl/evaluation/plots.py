"""Plots: h along trajectories, gain and cost against strength, and the tracking of closed loops."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from odesteer_tl.control import Bound, Linearity, Tracking
from odesteer_tl.evaluation.curve import Curve
from odesteer_tl.evaluation.demo_runs import Study
from odesteer_tl.evaluation.results import ComparedRow
from odesteer_tl.evaluation.strength import LEAST_DISTINCT, MOST_PERPLEXITY
from odesteer_tl.flows.flow import Trajectory


def check_picture(file: str | Path) -> None:
    """Raise ValueError where a picture cannot be written to `file`: for a suffix that matplotlib cannot write, a
    missing or read-only folder, and a folder of that name."""
    from matplotlib.figure import Figure

    file = Path(file)
    known = sorted(set(Figure().canvas.get_supported_filetypes()) - {"pgf"})  # pgf needs LaTeX
    if file.suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"{file} should end in .png, or in another of {', '.join(known)}.")
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file in it.")
    folder = Path(os.path.realpath(file)).parent
    if not folder.is_dir():
        raise ValueError(f"{file} cannot be written: there is no folder {folder}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        writable = not file.exists() or os.access(file, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"{file} cannot be written: choose a file or folder with write permission.")


def plot_study(study: Study, file: str | Path, title: str = "") -> None:
    """Write a PNG: h along the steered prompts, and share and perplexity against strength for every method."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    if study.trajectory is not None:
        _draw_trajectory(left, study.trajectory)
    base = study.unsteered_trial
    for row in study.rows[1:]:
        moved = [trial.displacement for trial in row.trials]
        line = middle.plot(moved, [100 * trial.share for trial in row.trials], "o-", ms=4, label=row.name)[0]
        right.plot(moved, [trial.perplexity / base.perplexity for trial in row.trials], "o-", ms=4, label=row.name)
        chosen = Curve(row.trials, base).chosen
        middle.plot(chosen.displacement, 100 * chosen.share, "o", ms=11, mfc="none", color=line.get_color())
    middle.axhline(100 * base.share, color="grey", lw=1, ls=":")
    middle.set(title="Validation prompts (circled: the strength chosen)", ylabel="continuations judged as desired, %")
    right.axhline(MOST_PERPLEXITY, color="grey", lw=1, ls=":")
    right.set(
        title=f"Its cost (allowed: ≤ {MOST_PERPLEXITY}× and Dist-2 ≥ {LEAST_DISTINCT}×)",
        ylabel="perplexity / unsteered",
        yscale="log",
    )
    for axes in (middle, right):
        axes.set(xscale="log", xlabel="median displacement ‖a(T) − a‖/‖a‖")
        axes.xaxis.set_major_locator(FixedLocator([trial.displacement for trial in study.rows[-1].trials]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    right.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.3, 2, 5)))
    right.yaxis.set_minor_locator(NullLocator())
    right.yaxis.set_major_formatter(FormatStrFormatter("%g×"))
    right.legend(fontsize=8)
    _save(figure, file, title)


def plot_comparison(rows: Sequence[ComparedRow], file: str | Path, title: str = "") -> None:
    """Write a PNG, a line per row: gain and cost if texts were generated, the AUC of h, norm ratio and angle."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.conditions is not None or row.runs]
    made = any(row.runs for row in rows)
    figure = Figure(figsize=(16 if made else 9, 1.6 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 4 if made else 2, sharey=True)
    if made:
        for y, row in enumerate(rows):
            (shift, shift_sd), (cost, cost_sd) = row.over_seeds("shift"), row.over_seeds("perplexity_ratio")
            axes[0].errorbar(100 * shift, y, xerr=100 * (shift_sd or 0), fmt="o", color="tab:blue", capsize=3)
            axes[1].errorbar(cost, y, xerr=cost_sd or 0, fmt="o", color="tab:red", capsize=3)
        axes[0].set(xlabel="shift of the judged share, points")
        axes[1].set(xlabel=f"perplexity / unsteered (trials allowed: ≤ {MOST_PERPLEXITY}×)")
    auc, length = axes[-2:]
    for y, row in enumerate(rows):
        conditions = row.conditions
        if conditions is not None:
            length.plot(conditions.norm_ratio, y, "o", color="tab:orange")
            length.annotate(f"{conditions.angle:.0f}°", (conditions.norm_ratio, y), (6, -3), textcoords="offset points")
            if conditions.auc is not None:
                auc.plot(conditions.auc, y, "o", color="tab:green")
    auc.set(xlabel="held-out AUC of h")
    length.set(xlabel="‖a(T)‖/‖a‖, and the angle")
    length.margins(x=0.15)  # room for the angles
    for panel, zero in zip(axes, [0, 1, 0.5, 1][-len(axes) :], strict=True):
        panel.axvline(zero, color="grey", lw=1, ls=":")
        panel.grid(axis="y", lw=0.3)
    axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0].invert_yaxis()
    _save(figure, file, title)


def plot_calibration(calibration: Any, file: str | Path) -> None:
    """Write a picture: mean and 95 % quantile of the KL divergence against strength, log-log, with the budget."""
    from matplotlib.figure import Figure

    check_picture(file)
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    draw_calibration(calibration, figure.subplots(), iter([{"marker": "o"}, {"marker": "s"}]))
    _save(figure, file, "")


def draw_calibration(calibration: Any, axes: Any, looks: Iterator[dict[str, Any]]) -> None:
    """Draw what `plot_calibration` writes. Raises ValueError where nothing was measured."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    if not calibration.curve:
        raise ValueError("A budget of 0 nats has no curve to plot: T = 0 was not sought.")
    values = [point.value for point in calibration.curve]
    axes.plot(values, [point.kl_mean for point in calibration.curve], ms=4, label="mean over tokens", **next(looks))
    axes.plot(
        values, [point.kl_p95 for point in calibration.curve], ls="--", ms=4, label="95 % quantile", **next(looks)
    )
    axes.axhline(calibration.kl, color="grey", lw=1, ls=":", label="budget")
    axes.axvline(calibration.strength.value, color="grey", lw=1, label="strength found")
    name = "relative_T (part of ‖a‖)" if calibration.sought == "relative_T" else calibration.sought
    axes.set(xscale="log", yscale="log", xlabel=name, ylabel="KL(unsteered ‖ steered), nats a token")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.legend(fontsize=8)


def plot_layers(choice: Any, file: str | Path) -> None:
    """Write a picture of `choose_layer`: the shift and the AUC of h, with standard errors, against the layer."""
    from matplotlib.figure import Figure

    check_picture(file)
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    shifts, aucs = figure.subplots(1, 2)
    draw_layers(choice, shifts, aucs, ({"marker": "o"} for _ in choice.candidates))
    _save(figure, file, "")


def draw_layers(choice: Any, shifts: Any, aucs: Any, looks: Iterator[dict[str, Any]], errors: float = 1.0) -> None:
    """Draw what `plot_layers` writes on two axes, with so many standard `errors`, and a ring around the choice."""
    for position, look in zip(dict.fromkeys(one.position for one in choice.candidates), looks, strict=False):
        own = [one for one in choice.candidates if one.position == position]
        steered, scored = [one for one in own if one.shift is not None], [one for one in own if one.auc is not None]
        for axes, part, names in ((shifts, steered, ("shift", "shift_error")), (aucs, scored, ("auc", "auc_error"))):
            y, error = ([getattr(one, name) for one in part] for name in names)
            axes.errorbar(
                [one.layer for one in part], y, [errors * one for one in error], ms=4, capsize=2, elinewidth=1,
                label=str(position), **look,
            )  # fmt: skip
    for axes, value in ((shifts, choice.best.shift), (aucs, choice.best.auc)):
        if value is not None:
            axes.plot(choice.layer, value, "o", ms=12, mfc="none", mec="grey", label="chosen")
    shifts.axhline(0, color="grey", lw=1, ls=":")
    shifts.set(xlabel="layer", ylabel=f"shift at {choice.budget:g} nats of KL, nats a text")
    aucs.set(xlabel="layer", ylabel="held-out AUC of h")
    for axes in (shifts, aucs):
        axes.set_xticks(sorted({one.layer for one in choice.candidates}))
    aucs.legend(title="read at", fontsize=8)


def _save(figure: Any, file: str | Path, title: str) -> None:
    """Write the figure, under its title if there is one."""
    if title:
        figure.suptitle(title)
    figure.savefig(file, dpi=110)


def _draw_trajectory(axes, trajectory: Trajectory) -> None:  # type: ignore[no-untyped-def]
    assert trajectory.h is not None
    h = trajectory.h.detach().cpu()
    time = torch.linspace(0, 1, len(h))
    axes.plot(time, h, color="tab:blue", alpha=0.15, lw=1)
    axes.plot(time, h.median(dim=1).values, "o-", color="tab:blue", ms=4, label="median prompt")
    axes.axhline(0, color="grey", lw=1, ls=":")
    axes.set(title="ODESteer: h along the trajectories", xlabel="t / T", ylabel="h = log p₊/p₋")
    axes.legend(fontsize=8)


def plot_tracking(tracking: Tracking, file: str | Path, title: str = "") -> None:
    """Write a PNG: by layer, the set-point of the first feature, and the features of all texts, open and closed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    layers = tracking.layers
    for name, beta, color in (("open", tracking.open, "tab:grey"), ("closed", tracking.closed, "tab:blue")):
        values = beta[:, :, 0]
        left.plot(layers, values.mean(1), "o-", ms=4, color=color, label=f"β, {name} loop: mean and 10–90 %")
        left.fill_between(layers, values.quantile(0.1, 1), values.quantile(0.9, 1), color=color, alpha=0.15, lw=0)
    left.plot(layers, tracking.goals[:, 0], "k--", lw=1.5, label="set-point β*")
    left.set(xlabel="what enters layer", ylabel="β = vᵀz", title="The feature and its set-point")
    for name, error, color in zip(("open", "closed"), tracking.errors, ("tab:grey", "tab:blue"), strict=True):
        right.plot(layers, error[:, 0], "o-", ms=4, color=color, label=f"{name} loop")
    right.set(xlabel="what enters layer", ylabel="mean |β − β*|", title="The error", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(layers)
        axes.legend(fontsize=8)
    _save(figure, file, title)


def plot_linearity(linearity: Linearity, file: str | Path, title: str = "") -> None:
    """Write a PNG: the similarity of Jacobians between prompts by layer, and their error against the size of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(linearity.layers, linearity.similarity, "o-", ms=4, label="J")
    left.plot(linearity.layers, linearity.own_similarity, "o-", ms=4, label="J − I")
    left.set(xlabel="layer", ylabel="similarity between prompts", ylim=(0, 1.02))
    left.set_xticks(linearity.layers)
    for layer, own, mean in zip(linearity.layers, linearity.own_error, linearity.mean_error, strict=True):
        line = right.plot(linearity.radii, own, "o-", ms=3, label=f"layer {layer}")[0]
        right.plot(linearity.radii, mean, "--", color=line.get_color(), lw=1)
    right.set(
        xlabel="‖δz‖/‖z‖", ylabel="relative error of A δz", xscale="log", title="own Jacobian; dashed: mean of prompts"
    )
    for axes in (left, right):
        axes.legend(fontsize=8)
    _save(figure, file, title)


def plot_bound(bound: Bound, file: str | Path, title: str = "") -> None:
    """Write a PNG: by layer, the mean error of the loop, its bound, and the bound without the drift."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, values, style in (
        ("‖δz‖", bound.errors, "o-"), ("bound", bound.bound, "s-"), ("without the drift", bound.published, "x--"),
    ):  # fmt: skip
        axes.plot(bound.layers, values.mean(1), style, ms=4, label=name)
    axes.set(xlabel="what enters layer", ylabel="in the weights P, mean over texts", yscale="log")
    axes.set_xticks(bound.layers)
    axes.legend(fontsize=8)
    _save(figure, file, title)
