"""Degeneracy: checks that two sides of activations differ, and warnings about data that make a fit doubtful."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odesteer_tl._shapes import Desired, Samples, Undesired
from odesteer_tl.portable.attention_sinks import sinks_among

ROUNDING = 1e-5
"""As a share of ‖a‖: two activations nearer than this are the same one, read in different batches."""

MOST_NORM_RATIO = 10.0
"""The largest ratio of the median norms of both sides that gives no warning."""

COMPARED_ROWS = 2000
"""How many rows of a side, spread evenly over it, are compared with all others."""


def share_repeated(rows: Samples, others: Float[Tensor, "m d_model"] | None = None) -> float:
    """The share of `rows` that also occur in `others`, to rounding. Without `others`: that occur twice in `rows`.

    Rows are compared by eight random projections, which keep distances nearly; no pair is compared in full.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rows.shape[1], 8, generator=generator, device="cpu") / 8**0.5
    points = rows.float() @ directions.to(rows.device)
    other_points = points if others is None else others.float() @ directions.to(rows.device)
    tolerance = ROUNDING * rows.float().norm(dim=1)
    compared = torch.linspace(0, len(rows) - 1, min(len(rows), COMPARED_ROWS), device=rows.device).round().long()
    repeated = 0
    for chosen in compared.split(256):
        distances = torch.cdist(points[chosen], other_points, compute_mode="donot_use_mm_for_euclid_dist")
        if others is None:
            distances[torch.arange(len(chosen), device=rows.device), chosen] = math.inf
        repeated += int((distances.amin(1) <= tolerance[chosen]).sum())
    return repeated / len(compared)


def spread(rows: Samples) -> float:
    """√(mean ‖a − mean‖²)/√(mean ‖a‖²). It is 0 where all rows are the same, and where all are 0."""
    size = float(rows.float().norm(dim=1).square().mean().sqrt())
    away = (rows - rows.mean(0)).float().norm(dim=1).square().mean().sqrt()
    return float(away) / size if size > 0 else 0.0


def rounding_of(*dtypes: torch.dtype) -> float:
    """The relative rounding of the coarsest of the dtypes, half its eps; at least 1e-12, for sums in float64.

    Numbers that differ by less, relative to the largest, are the same number up to rounding. Integers are exact.
    """
    return max([1e-12, *(torch.finfo(dtype).eps / 2 for dtype in dtypes if dtype.is_floating_point)])


def check_apart(desired: Desired, undesired: Undesired) -> None:
    """Raise ValueError where every row of each side is also a row of the other side."""
    if share_repeated(desired, undesired) == 1 and share_repeated(undesired, desired) == 1:
        raise ValueError(
            f"The {len(desired)} desired and {len(undesired)} undesired activations are the same ones, so "
            "nothing tells the sides apart: pass other texts for one side, or read another position or layer."
        )


def check_means(desired: Float[Tensor, " d_model"], undesired: Float[Tensor, " d_model"]) -> None:
    """Raise ValueError where the means of both sides are the same, for methods that use the means alone."""
    size = max(float(desired.norm()), float(undesired.norm()))
    if float((desired - undesired).norm()) <= 1e-6 * size:
        raise ValueError(
            "The means of desired and undesired activations are the same, so their difference is no direction: "
            "fit ODESteer, which also uses the spread of each side, or pass other texts."
        )


def warnings_about(desired: Desired, undesired: Undesired) -> list[str]:
    """What makes a fit to these sides doubtful, each as a sentence that says what to do; empty where all is well."""
    texts, sides = [], {"desired": desired, "undesired": undesired}
    for name, rows in sides.items():
        if len(rows) > 1 and spread(rows) <= ROUNDING:
            texts.append(f"All {len(rows)} {name} activations are the same: read other texts, or another position.")
        elif len(rows) > 1 and (share := share_repeated(rows)) > 0.5:
            texts.append(f"{share:.0%} of the {name} activations occur more than once: drop repeated texts.")
    if (share := share_repeated(desired, undesired)) > 0.5:
        texts.append(f"{share:.0%} of the desired activations are also among the undesired ones: drop those texts.")
    norms = {name: rows.float().norm(dim=1) for name, rows in sides.items()}
    high, low = (float(norms[name].median()) for name in sides)
    if max(high, low) > MOST_NORM_RATIO * min(high, low):
        texts.append(
            f"Desired activations have a median norm of {high:.4g}, undesired ones of {low:.4g}: read both at one site "
            "and position of one model. (The first token of a text may be an attention sink, with a far larger norm.)"
        )
    told = sinks_told(desired, undesired)
    if told and len(texts) == 0:
        texts.append(
            f"{told}, and outweigh the others. Fit on acts.without_sinks(), or read after a BOS (prepend_bos=True)."
        )
    return texts


def sink_rows(desired: Desired, undesired: Undesired) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " m"]]:
    """Which rows of each side have the norm of an attention sink, where the others have not."""
    norms = torch.cat([rows.float().norm(dim=1) for rows in (desired, undesired)]).unsqueeze(0).cpu()
    loud = sinks_among(norms, torch.ones_like(norms, dtype=torch.bool))[0]
    return loud[: len(desired)], loud[len(desired) :]


def rows_without_sinks(
    desired: Desired, undesired: Undesired, paired: bool
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " m"]] | None:
    """The rows that are no sinks, of pairs those of which neither is; None for all, and where a side would be empty."""
    loud = sink_rows(desired, undesired)
    if paired:
        loud = loud[0] | loud[1], loud[0] | loud[1]
    kept = ~loud[0], ~loud[1]
    if not any(bool(side.any()) for side in loud) or not all(bool(side.any()) for side in kept):
        return None
    return kept


def sinks_told(desired: Desired, undesired: Undesired) -> str:
    """How many rows are attention sinks, and their norms; empty where none is."""
    loud = torch.cat(sink_rows(desired, undesired))
    if not bool(loud.any()):
        return ""
    norms = torch.cat([rows.float().norm(dim=1).cpu() for rows in (desired, undesired)])
    return (
        f"{int(loud.sum())} of {len(loud)} activations have a norm of {float(norms[loud].median()):,.4g} where the "
        f"others have {float(norms[~loud].median()):,.4g}: these are attention sinks, such as texts of one token"
    )


def check_queries(queries: Samples) -> None:
    """Raise ValueError where all queries are the same, to rounding."""
    if len(queries) > 1 and spread(queries) <= ROUNDING:
        raise ValueError(
            f"The {len(queries)} queries are all the same, so the fit cannot learn how corrections depend on them: "
            "pass answers to different questions, or fit a method that needs no queries, such as ODESteer."
        )
