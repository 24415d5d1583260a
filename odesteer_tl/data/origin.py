"""Where a fit is valid: its site and model, and how the model's weights were processed."""

from dataclasses import dataclass
from typing import Literal

import torch

from odesteer_tl._shapes import Position, Samples
from odesteer_tl.data.tokens import check_position

Processing = Literal["raw", "folded", "centred", "unknown"]
"""How the weights were processed. `centred` (TransformerLens' center_writing_weights) changes the residual stream: it
removes the mean over d_model. `folded` (fold_ln, fold_value_biases) does not change it."""


@dataclass(frozen=True)
class Origin:
    """Where a fit is valid: site, model and weight processing, with the median activation norm at that site."""

    d_model: int | None = None
    layer: int | None = None
    hook_name: str | None = None
    model_name: str = ""
    processing: Processing = "unknown"
    position: Position | None = None
    typical_norm: float | None = None

    def __post_init__(self) -> None:
        if self.position is not None:
            check_position(self.position)


def processing_seen_in(rows: Samples, dtype: torch.dtype | None = None) -> Processing:
    """Whether all rows have mean zero over d_model, to the rounding of `dtype`: "centred", else "raw"."""
    a, rounding = rows.double(), max(1e-5, torch.finfo(dtype or rows.dtype).eps)
    return "centred" if bool((a.mean(1).abs() <= rounding * a.std(1)).all()) else "raw"
