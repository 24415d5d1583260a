"""Plots of comparisons: h along trajectories, gain and cost against the budget, and every row with its spread."""

from collections.abc import Sequence
from pathlib import Path

import torch

from odesteer_tl.evaluation.plots import save_figure
from odesteer_tl.evaluation.results import ComparedRow
from odesteer_tl.flows.flow import Trajectory


def plot_budgets(rows: Sequence[ComparedRow], trajectory: Trajectory | None, file: str | Path, title: str = "") -> None:
    """Write a PNG: h along a trajectory, and share and perplexity against the KL spent, a line per row."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    if trajectory is not None:
        _draw_trajectory(left, trajectory)
    base, *steered = rows
    for row in steered:
        budgets = sorted(row.budgets)
        spent = [row.over_seeds("kl", budget)[0] for budget in budgets]
        shares = [100 * row.over_seeds("share", budget)[0] for budget in budgets]
        middle.plot(spent, shares, "o-", ms=4, label=row.name)
        ratios = [row.over_seeds("perplexity_ratio", budget)[0] for budget in budgets]
        right.plot(spent, ratios, "o-", ms=4, label=row.name)
    middle.axhline(100 * base.over_seeds("share")[0], color="grey", lw=1, ls=":")
    middle.set(title="Gain (dotted: no steering)", ylabel="continuations judged as desired, %")
    right.axhline(1, color="grey", lw=1, ls=":")
    right.set(title="Cost", ylabel="perplexity / unsteered")
    for axes in (middle, right):
        axes.set(xscale="log", xlabel="KL(unsteered ‖ steered), nats per token")
        axes.xaxis.set_major_locator(FixedLocator(sorted({budget for row in rows for budget in row.budgets})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    right.legend(fontsize=8)
    save_figure(figure, file, title)


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
        axes[1].set(xlabel="perplexity / unsteered")
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
    save_figure(figure, file, title)


def _draw_trajectory(axes, trajectory: Trajectory) -> None:  # type: ignore[no-untyped-def]
    assert trajectory.h is not None
    h = trajectory.h.detach().cpu()
    time = torch.linspace(0, 1, len(h), device="cpu")
    axes.plot(time, h, color="tab:blue", alpha=0.15, lw=1)
    axes.plot(time, h.median(dim=1).values, "o-", color="tab:blue", ms=4, label="median prompt")
    axes.axhline(0, color="grey", lw=1, ls=":")
    axes.set(title="ODESteer: h along the trajectories", xlabel="t / T", ylabel="h = log p₊/p₋")
    axes.legend(fontsize=8)
