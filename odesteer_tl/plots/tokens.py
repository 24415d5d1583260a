"""Numbers by layer and token: what moved, and what it did."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import matplotlib.figure

LayersByTokens = Float[Tensor, "layers pos"]


def displacements(before: Any, after: Any, row: int = 0) -> LayersByTokens:
    """‖a′ − a‖/‖a‖ at `resid_post` of every layer, at every token of one row, of two caches of `run_with_cache`: before
    of the unsteered model, after of the steered one, on the same tokens.

    Raises ValueError where a cache holds no `resid_post`, or they differ in layers or shape.
    """
    found: list[dict[int, Tensor]] = []
    for cache in (before, after):
        ends = [(str(name), name) for name in cache.keys()]
        parts = [(said.split("."), name) for said, name in ends if said.endswith(".hook_resid_post")]
        found.append({int(part[1]): cache[name][row].detach().double().cpu() for part, name in parts})
    if not found[0] or found[0].keys() != found[1].keys():
        raise ValueError(
            "Both caches need hook_resid_post of the same layers: run_with_cache(tokens), or with "
            'names_filter=lambda name: name.endswith("hook_resid_post").'
        )
    rows = []
    for layer in sorted(found[0]):
        old, new = found[0][layer], found[1][layer]
        if old.shape != new.shape:
            raise ValueError(
                f"The caches hold {tuple(old.shape)} and {tuple(new.shape)} at layer {layer}: other tokens."
            )
        rows.append((new - old).norm(dim=-1) / old.norm(dim=-1))
    return torch.stack(rows)


def by_token(
    values: Mapping[str, LayersByTokens] | LayersByTokens,
    tokens: Sequence[str],
    label: str = "‖a′ − a‖/‖a‖",
    *,
    signed: bool = False,
) -> "matplotlib.figure.Figure":
    """A map of numbers by layer (upwards) and token (to the right); `values` [layers, pos], or several by name, on one
    scale. `label` says what they are, with their unit. `signed`: colours are centred on 0. Raises ValueError for
    another number of tokens than of columns."""
    from odesteer_tl.plots.barriers import named
    from odesteer_tl.plots.picture import AMOUNTS, HEIGHTS, picture

    by_name = {name: torch.as_tensor(one, device="cpu").detach().float() for name, one in named(values, " ").items()}
    for name, one in by_name.items():
        if one.ndim != 2 or one.shape[1] != len(tokens):
            raise ValueError(f"{name} is {tuple(one.shape)}; {len(tokens)} tokens need values [layers, {len(tokens)}].")
    most = max(float(one.abs().max()) for one in by_name.values()) or 1.0
    rows = max(len(one) for one in by_name.values())
    scale = {"cmap": HEIGHTS, "vmin": -most, "vmax": most} if signed else {"cmap": AMOUNTS, "vmin": 0, "vmax": most}
    size = {"width": 1.6 + 0.3 * len(tokens), "height": 1.9 + 0.22 * min(rows, 14)}
    with picture(len(by_name), sharey=True, **size) as (figure, panels):
        shown: Any = None
        for axes, (name, one) in zip(panels, by_name.items(), strict=True):
            shown = axes.imshow(one.numpy(), aspect="auto", origin="lower", interpolation="nearest", **scale)
            axes.set_xticks(
                range(len(tokens)), [token.replace("$", r"\$") for token in tokens], rotation=60, ha="right"
            )
            axes.set(title=name.strip(), xlabel="token")
        panels[0].set(ylabel="layer (output of the block)")
        panels[0].set_yticks(range(0, rows, max(1, rows // 8)))
        figure.colorbar(shown, ax=list(panels), label=label)
    return figure
