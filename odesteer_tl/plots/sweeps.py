"""What a sweep found, by strength."""

from typing import TYPE_CHECKING

from odesteer_tl.evaluation.sweeps.result import Sweep

if TYPE_CHECKING:
    import matplotlib.figure


def sweep(found: Sweep) -> "matplotlib.figure.Figure":
    """The primary metric, with 95 % intervals over seeds and prompts, and KL(unsteered ‖ steered) against the strength,
    a line per method and place; hollow marks break a guardrail, and a dotted line is the unsteered model. Raises
    ValueError for a sweep without steered rows."""
    from odesteer_tl.plots.picture import INK, looks, picture

    steered = [row for row in found.rows if row.layer is not None]
    if not steered:
        raise ValueError("sweep draws the steered rows of ot.sweep; there are none.")
    lines = list(dict.fromkeys((row.method, row.layer, row.position) for row in steered))
    with picture(2, width=4.6) as (figure, (primary, cost)):
        for key, look in zip(lines, looks(), strict=False):
            rows = [row for row in steered if (row.method, row.layer, row.position) == key]
            label = f"{key[0]}, layer {key[1]}" + ("" if len(found.plan.positions) == 1 else f", {key[2]}")
            x, y = [row.strength for row in rows], [row.primary for row in rows]
            ends = [row.interval() for row in rows]
            bars = [[max(0.0, at - low) for at, (low, _) in zip(y, ends, strict=True)],
                    [max(0.0, high - at) for at, (_, high) in zip(y, ends, strict=True)]]  # fmt: skip
            primary.errorbar(x, y, bars, label=label, capsize=2, elinewidth=1, **look)
            kl = [float("nan") if (one := row.measures["kl"]) is None else one for row in rows]
            cost.plot(x, kl, label=label, **look)
            for axes, heights in ((primary, y), (cost, kl)):
                marks = [(at, height) for at, height, row in zip(x, heights, rows, strict=True) if row.broken]
                axes.plot(*zip(*marks, strict=True), ls="none", mfc="white", zorder=3, **look) if marks else None
        primary.axhline(found.rows[0].primary, color=INK, lw=1, ls=":")
        primary.set(ylabel=found.plan.primary, xlabel="strength")
        cost.set(ylabel="KL(unsteered ‖ steered), nats a token", xlabel="strength")
        primary.legend()
    return figure
