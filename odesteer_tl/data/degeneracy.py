"""Degeneracy: what about two sides of activations lets nothing be fitted to them, and what makes a fit doubtful."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Desired, Samples, Undesired
from odesteer_tl.portable.attention_sinks import sinks_among

ROUNDING = 1e-5
"""Of ‖a‖: activations nearer to each other are the same, read in other batches."""

APART = 10.0
"""The largest factor between the median norms of both sides that is not remarked on."""

LOOKED_AT = 2000
"""How many rows of a side, evenly spread over it, are compared with all others."""


def twins(rows: Samples, others: Float[Tensor, "m d_model"] | None = None) -> float:
    """The share of `rows` that stand among `others`, to rounding; None: a second time among the rows themselves.

    Distances are those of eight random projections, which are near those of the rows: no pair is compared in full.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rows.shape[1], 8, generator=generator) / 8**0.5
    found = rows.float() @ directions.to(rows.device)
    against = found if others is None else others.float() @ directions.to(rows.device)
    limit = ROUNDING * rows.float().norm(dim=1)
    looked = torch.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT), device=rows.device).round().long()
    same = 0
    for chosen in looked.split(256):
        distances = torch.cdist(found[chosen], against, compute_mode="donot_use_mm_for_euclid_dist")
        if others is None:
            distances[torch.arange(len(chosen), device=rows.device), chosen] = math.inf
        same += int((distances.amin(1) <= limit[chosen]).sum())
    return same / len(looked)


def spread(rows: Samples) -> float:
    """√(mean ‖a − mean‖²)/√(mean ‖a‖²): 0 where all rows are the same, and where all are 0."""
    size = float(rows.float().norm(dim=1).square().mean().sqrt())
    away = (rows - rows.mean(0)).float().norm(dim=1).square().mean().sqrt()
    return float(away) / size if size > 0 else 0.0


def check_apart(desired: Desired, undesired: Undesired) -> None:
    """Raise ValueError where every row of either side stands on the other side, too."""
    if twins(desired, undesired) == 1 and twins(undesired, desired) == 1:
        raise ValueError(
            f"The {len(desired)} desired and {len(undesired)} undesired activations are the same ones, so that there "
            "is nothing to steer by: pass other texts for one side, or read another position or layer."
        )


def check_means(desired: Float[Tensor, " d_model"], undesired: Float[Tensor, " d_model"]) -> None:
    """Raise ValueError where the means of both sides are the same, for methods that have nothing else."""
    size = max(float(desired.norm()), float(undesired.norm()))
    if float((desired - undesired).norm()) <= 1e-6 * size:
        raise ValueError(
            "The means of desired and undesired activations are the same, so that their difference steers nowhere: "
            "fit ODESteer, which also sees how the sides are spread, or pass other texts."
        )


def doubts(desired: Desired, undesired: Undesired) -> list[str]:
    """What a fit to these sides suffers from, in sentences that say what to do; empty where nothing is seen."""
    said, sides = [], {"desired": desired, "undesired": undesired}
    for name, rows in sides.items():
        if len(rows) > 1 and spread(rows) <= ROUNDING:
            said.append(f"All {len(rows)} {name} activations are the same: read other texts, or another position.")
        elif len(rows) > 1 and (share := twins(rows)) > 0.5:
            said.append(f"{share:.0%} of the {name} activations stand there more than once: drop repeated texts.")
    if (share := twins(desired, undesired)) > 0.5:
        said.append(f"{share:.0%} of the desired activations stand among the undesired ones, too: drop those texts.")
    norms = {name: rows.float().norm(dim=1) for name, rows in sides.items()}
    high, low = (float(norms[name].median()) for name in sides)
    if max(high, low) > APART * min(high, low):
        said.append(
            f"Desired activations have a median norm of {high:.4g}, undesired ones of {low:.4g}: read both at one site "
            "and position of one model. (The first token of a text may be an attention sink, of another norm.)"
        )
    both = torch.cat(list(norms.values())).unsqueeze(0).cpu()
    loud = sinks_among(both, torch.ones_like(both, dtype=torch.bool))[0]
    if bool(loud.any()) and len(said) == 0:
        said.append(
            f"{int(loud.sum())} of {len(loud)} activations have a norm of {float(both[0, loud].median()):,.4g} where "
            f"the others have {float(both[0, ~loud].median()):,.4g}: attention sinks, as texts of one token are: they "
            "outweigh the others. Drop them, or read them after a BOS (prepend_bos=True)."
        )
    return said


def check_queries(queries: Samples) -> None:
    """Raise ValueError where all queries are one, to rounding."""
    if len(queries) > 1 and spread(queries) <= ROUNDING:
        raise ValueError(
            f"The {len(queries)} queries are one and the same, so that nothing can be learned of what a query needs: "
            "pass answers to different questions, or fit a method that needs no queries, such as ODESteer."
        )
