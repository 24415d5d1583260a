"""What `check_data` measured: how far h and the surface tell the sides apart."""

from typing import TYPE_CHECKING

from odesteer_tl.evaluation.data_check.report import DataCheck
from odesteer_tl.evaluation.separation import Z95

if TYPE_CHECKING:
    import matplotlib.figure


def areas(check: DataCheck) -> "matplotlib.figure.Figure":
    """The held-out AUC of every baseline and of h at every place, with 95 % intervals; a dotted line is chance. Raises
    ValueError for a check that measured none."""
    from odesteer_tl.plots.picture import INK, looks, picture

    if not check.areas:
        raise ValueError("areas draws the AUCs of ot.check_data; this check measured none: see its items.")
    rows = list(range(len(check.areas)))
    with picture(width=6.0, height=0.8 + 0.25 * len(rows)) as (figure, (axes,)):
        bars = [Z95 * one.error for one in check.areas]
        axes.errorbar([one.auc for one in check.areas], rows, xerr=bars, ls="none", capsize=2, **next(looks()))
        axes.axvline(0.5, color=INK, lw=1, ls=":")
        axes.set_yticks(rows, [one.name for one in check.areas])
        axes.invert_yaxis()
        axes.set(xlabel="held-out AUC, with 95 % intervals", ylabel="told apart by")
    return figure
