"""Strength, what it costs, and how far it steers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from odesteer_tl.evaluation.calibration import Calibration
from odesteer_tl.evaluation.layer_choice import LayerChoice
from odesteer_tl.evaluation.plots import draw_calibration, draw_layers
from odesteer_tl.evaluation.separation import Z95

if TYPE_CHECKING:
    import matplotlib.figure


def calibration(found: Calibration) -> "matplotlib.figure.Figure":
    """KL(unsteered ‖ steered), mean and 95 % quantile over tokens, against strength; lines mark the budget and the
    strength that spends it. Raises ValueError for a budget of 0, for which nothing was measured."""
    from odesteer_tl.plots.picture import looks, picture

    with picture() as (figure, (axes,)):
        draw_calibration(found, axes, looks())
    return figure


def layers(choice: LayerChoice) -> "matplotlib.figure.Figure":
    """Of every candidate of `choose_layer` the shift at the budget and the held-out AUC of h, with 95 % intervals,
    against the layer; a line per reading position, a ring around the choice."""
    from odesteer_tl.plots.picture import looks, picture

    with picture(2, width=4.6) as (figure, (shifts, aucs)):
        draw_layers(choice, shifts, aucs, looks(), Z95)
    return figure


def shift(choices: Mapping[str, Sequence[LayerChoice]]) -> "matplotlib.figure.Figure":
    """The shift of held-out texts at the chosen place against the KL that it costs, with 95 % intervals. `choices`: by
    name, what `choose_layer` returned for one budget after another. Raises ValueError where there is none."""
    from odesteer_tl.plots.picture import INK, looks, picture

    if not choices or not all(choices.values()):
        raise ValueError('shift draws {"CAA": [choice at one budget, choice at another, …], …}; got an empty one.')
    with picture() as (figure, (axes,)):
        for (name, several), look in zip(choices.items(), looks(), strict=False):
            ordered = sorted(several, key=lambda choice: choice.budget)
            axes.errorbar(
                [choice.budget for choice in ordered], [choice.best.shift for choice in ordered],
                [Z95 * (choice.best.shift_error or 0) for choice in ordered], label=name, capsize=2, elinewidth=1,
                **look,
            )  # fmt: skip
        axes.axhline(0, color=INK, lw=1, ls=":")
        axes.set(xscale="log", xlabel="KL(unsteered ‖ steered), nats a token")
        axes.set(ylabel="Δ log p(desired) − Δ log p(undesired), nats a text")
        budgets = sorted({choice.budget for several in choices.values() for choice in several})
        axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axes.minorticks_off()
        axes.legend()
    return figure


def shift_by_auc(choices: Mapping[str, LayerChoice]) -> "matplotlib.figure.Figure":
    """Every candidate of `choose_layer` that was steered: the shift at one budget against the held-out AUC of h, with
    95 % intervals; a colour per name, hollow for all reading positions but the first. Raises ValueError where there is
    none, and for choices at several budgets."""
    from odesteer_tl.plots.picture import INK, looks, picture

    budgets = {choice.budget for choice in choices.values()}
    if len(budgets) != 1:
        raise ValueError(f"shift_by_auc compares choices at one budget, got {sorted(budgets)}: use the same kl=.")
    positions = list(dict.fromkeys(one.position for choice in choices.values() for one in choice.candidates))
    with picture(width=7.2) as (figure, (axes,)):
        for (name, choice), look in zip(choices.items(), looks(), strict=False):
            for position in positions:
                own = [one for one in choice.candidates if one.position == position and one.auc is not None]
                own = [one for one in own if one.shift is not None]
                if own:
                    axes.errorbar(
                        [one.auc for one in own], [one.shift for one in own],
                        [Z95 * (one.shift_error or 0) for one in own],
                        [Z95 * (one.auc_error or 0) for one in own], ls="none", elinewidth=0.6,
                        mfc=look["color"] if position == positions[0] else "white", label=f"{name}, {position}", **look,
                    )  # fmt: skip
        axes.axhline(0, color=INK, lw=1, ls=":")
        axes.set(xlabel="held-out AUC of h")
        axes.set(ylabel=f"shift at {budgets.pop():g} nats of KL, nats a text")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
