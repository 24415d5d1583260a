"""Tracking: how close a closed loop brings its features to their set-points, layer by layer."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.tokenize import Texts
from odesteer_tl.control.base import FeedbackController, SetPoints
from odesteer_tl.control.diagnostics.record import recorded
from odesteer_tl.portable.sites import Site

Betas = Float[Tensor, "layers n features"]


@dataclass(frozen=True, eq=False)
class Tracking:
    """β_k = v_kᵀz_k at the last token of n texts, at the input of each of `layers`: `open` without steering, `closed`
    with the loop; `goals` are T·β*_k."""

    layers: tuple[int, ...]
    goals: SetPoints
    open: Betas
    closed: Betas

    @property
    def errors(self) -> tuple[SetPoints, SetPoints]:
        """The mean of |β − β*| over the texts, open and closed."""
        goals = self.goals.unsqueeze(1)
        return (self.open - goals).abs().mean(1), (self.closed - goals).abs().mean(1)

    def table(self) -> str:
        """A line per layer and feature: β*, the mean β, and the mean error |β − β*|."""
        lines = [
            f"{'layer':>5} {'feature':>7} {'β*':>9} {'β open':>9} {'β closed':>9} {'|β − β*| open':>14} {'closed':>9}"
        ]
        columns = torch.stack([self.goals, self.open.mean(1), self.closed.mean(1), *self.errors], dim=-1)
        for number, layer in enumerate(self.layers):
            for feature, row in enumerate(columns[number].tolist()):
                cells = [f"{value:>{width}.4g}" for value, width in zip(row, (9, 9, 9, 14, 9), strict=True)]
                lines.append(" ".join([f"{layer:>5}", f"{feature:>7}", *cells]))
        return "\n".join(lines)


def set_point_tracking(
    model: Any, method: FeedbackController, texts: Texts, T: float | int = 1.0, **reading: Any
) -> Tracking:
    """Run `texts` twice, without the loop and with it at strength T, and read β_k at its layers in both.

    `reading`: `batch_size`, `prepend_bos`, `chat_template`, `blocks` as for `ot.generate`, and `positions`, "decoding"
    or "all". The model runs on this machine. Raises ValueError for methods that are not closed loops, for other
    positions, for a T that is not a number, and as `ot.generate` does.
    """
    if not isinstance(method, FeedbackController):
        raise ValueError(f"set_point_tracking takes closed loops, ALQR or SPID; got a {type(method).__name__}.")
    if not isinstance(T, (int, float)):
        raise ValueError(f"set_point_tracking takes one number T for all texts; got a {type(T).__name__}.")
    sites = [Site(layer, "resid_pre") for layer in method.layers]
    v = method.directions.cpu()

    def betas(z: Float[Tensor, "layers n d_model"]) -> Betas:
        return torch.einsum("lnd,lfd->lnf", z, v.to(z))

    open_betas = betas(recorded(model, texts, sites, **reading))
    closed_betas = betas(recorded(model, texts, sites, method, T, **reading))
    return Tracking(method.layers, float(T) * method.set_points.cpu().to(open_betas), open_betas, closed_betas)
