"""Figures, each in one call on what other calls return.

| call | of | shows |
|---|---|---|
| `ot.plots.layers(choice)` | `ot.choose_layer` | shift and AUC by layer and reading position |
| `ot.plots.separation(found)` | `separations` of `evaluation.separation` | held-out AUC by layer, with intervals |
| `ot.plots.level_sets(h, paths, acts)` | a method, `method.trajectory`, `ot.collect` | level sets of h, and paths |
| `ot.plots.along_path(paths)` | `method.trajectory` | h against t/T |
| `ot.plots.log_odds(h, acts)` | a method, `ot.collect` | what h says against the odds that are counted |
| `ot.plots.calibration(found)` | `ot.calibrate` | KL against strength |
| `ot.plots.shift(choices)` | `ot.choose_layer` at several `kl` | shift against KL |
| `ot.plots.shift_by_auc(choices)` | `ot.choose_layer` of several methods | whether what separates also steers |
| `ot.plots.areas(check)` | `ot.check_data` | held-out AUC of h and of the surface, with intervals |
| `ot.plots.sweep(found)` | `ot.sweep` | primary metric and KL by strength, a line per method and place |
| `ot.plots.by_token(values, tokens)` | `displacements`, or numbers by layer and token | a map of layers and tokens |
| `ot.plots.tracking(found)` | `control.set_point_tracking` | a closed loop's feature and set-point by layer |
| `ot.plots.linearity(found)` | `control.local_linearity` | how linear each block is |
| `ot.plots.bound(found)` | `control.tracking_bound` | a loop's error and its bound by layer |
| `ot.plots.by_layer(values, layers, label)` | numbers by layer | them, a line per name |

`ot.token_map` shows texts token by token, as a page of HTML. Each of these returns a matplotlib figure, which a
notebook shows and `.savefig(file)` writes; `figure.axes` are there to change. Paper is white on any background, and
colours are those of Okabe & Ito, which the colour-blind can tell apart; lines differ in their markers too. matplotlib
is loaded when the first figure is drawn.
"""

from odesteer_tl.plots.barriers import log_odds, separation
from odesteer_tl.plots.data_checks import areas
from odesteer_tl.plots.loops import bound, by_layer, linearity, tracking
from odesteer_tl.plots.paths import along_path, level_sets
from odesteer_tl.plots.strengths import calibration, layers, shift, shift_by_auc
from odesteer_tl.plots.sweeps import sweep
from odesteer_tl.plots.tokens import by_token, displacements

__all__ = [
    "along_path",
    "areas",
    "bound",
    "by_layer",
    "by_token",
    "calibration",
    "displacements",
    "layers",
    "level_sets",
    "linearity",
    "log_odds",
    "separation",
    "shift",
    "shift_by_auc",
    "sweep",
    "tracking",
]
