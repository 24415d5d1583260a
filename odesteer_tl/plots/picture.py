"""The paper that all figures are drawn on: size, colours, markers. Imported when the first figure is drawn."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

DESIRED, UNDESIRED, INK = "#0072B2", "#D55E00", "#222222"
COLOURS = (DESIRED, UNDESIRED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito 2008, without the yellow, which white paper swallows; blue is desired, vermilion undesired."""
MARKERS = "osD^vPX"
HEIGHTS = LinearSegmentedColormap.from_list("h", [UNDESIRED, "#FBE3D6", "#FFFFFF", "#D3E6F3", DESIRED])
"""Vermilion below 0, white at 0, blue above."""
AMOUNTS = "cividis"
DOTS_PER_INCH, PALETTE = 80, 192
"""Of what a notebook keeps, also the number of colours: a figure is some 15 kB. `savefig(file, dpi=…)` writes more."""

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "legend.facecolor": "white", "legend.edgecolor": "#CCCCCC",
    "legend.labelcolor": INK, "legend.fontsize": 8, "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"], "lines.linewidth": 1.6, "lines.markersize": 4.5,
}  # fmt: skip


class Picture(Figure):
    """A figure that a notebook shows without pyplot: no display, no global state, small."""

    def _repr_png_(self) -> bytes:
        drawn, kept = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
        with Image.open(drawn) as image:
            few = image.convert("RGB").quantize(PALETTE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(kept, format="png", optimize=True)  # rare colours are kept too: the ends of a scale
        return kept.getvalue()


@contextmanager
def picture(columns: int = 1, *, width: float = 5.2, height: float = 3.6, **shared: Any) -> Iterator[tuple[Any, Any]]:
    """(figure, panels) to draw on inside the block, whatever style the user has set; `width`, of one panel, and
    `height` in inches."""
    with rc_context(STYLE):
        figure = Picture(figsize=(width * columns, height), layout="constrained")
        yield figure, figure.subplots(1, columns, squeeze=False, **shared)[0]
        figure.draw_without_rendering()  # ticks and legends take their colours here


def looks() -> Iterator[dict[str, Any]]:
    """Colour and marker of one line after another."""
    return ({"color": colour, "marker": marker} for colour, marker in zip(cycle(COLOURS), cycle(MARKERS)))
