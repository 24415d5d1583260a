"""Plots of what is found before texts are judged: calibrations and layers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odesteer_tl.data.file_checks import check_writable_file


def check_picture(file: str | Path) -> None:
    """Raise ValueError where a picture cannot be written to `file`: for a suffix that matplotlib cannot write, a
    missing or read-only folder, and a folder of that name."""
    from matplotlib.figure import Figure

    file = Path(file)
    known = sorted(set(Figure().canvas.get_supported_filetypes()) - {"pgf"})  # pgf needs LaTeX
    if file.suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"{file} should end in .png, or in another of {', '.join(known)}.")
    check_writable_file(file)


def plot_calibration(calibration: Any, file: str | Path) -> None:
    """Write a picture: mean and 95 % quantile of the KL divergence against strength, log-log, with the budget."""
    from matplotlib.figure import Figure

    check_picture(file)
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    draw_calibration(calibration, figure.subplots(), iter([{"marker": "o"}, {"marker": "s"}]))
    save_figure(figure, file, "")


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
    save_figure(figure, file, "")


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


def save_figure(figure: Any, file: str | Path, title: str) -> None:
    """Write the figure, under its title if there is one."""
    if title:
        figure.suptitle(title)
    figure.savefig(file, dpi=110)
