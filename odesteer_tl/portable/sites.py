"""Sites: the points of a model that edits read and write, and their order in a forward pass."""

from __future__ import annotations

from typing import Any, Literal, get_args

from odesteer_tl.portable.frozen import Frozen

SiteName = Literal["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""The sites of a block in the order of a forward pass; `z` is the output of its attention heads,
[.., n_heads·d_head]."""

SITES: tuple[str, ...] = get_args(SiteName)
"""The names of the sites of a block, in the order of a forward pass."""


class Site(Frozen):
    """A point in the model: `blocks.{layer}.hook_{name}` in TransformerLens's names, layers counted from 0."""

    layer: int
    name: SiteName

    def __init__(self, layer: int, name: SiteName = "resid_post") -> None:
        check_index(layer)
        self.__dict__.update(layer=layer, name=name)

    @property
    def hook_name(self) -> str:
        inner = "attn." if self.name == "z" else ""
        return f"blocks.{self.layer}.{inner}hook_{self.name}"

    @staticmethod
    def fitted(hook_name: str | None, layer: int) -> Site:
        """The site at `layer` that a TransformerLens hook name stands for (None: `resid_post`). Raises ValueError for a
        hook that cannot be steered."""
        name: Any = site_name(hook_name)
        return Site(layer, name)


def place_of(site: Any) -> tuple[int, int]:
    """The sort key of a site in the order of a forward pass: (layer, number within the block)."""
    return site.layer, SITES.index(site.name)


def site_name(hook_name: str | None) -> str:
    """The site name in a TransformerLens hook name: "z" for "blocks.6.attn.hook_z", "resid_post" for None.

    Raises ValueError for a hook that cannot be steered.
    """
    name = "resid_post" if hook_name is None else hook_name.rpartition("hook_")[2]
    if name not in SITES:
        raise ValueError(f"Methods act at {', '.join(SITES)}; this one was fitted at {hook_name}.")
    return name


def check_index(layer: int) -> None:
    """Raise ValueError for a layer that is not an integer, or below 0."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise ValueError(f"Layers are block indices counted from 0, got {layer!r}.")


def check_no_layer(layer: int | None) -> None:
    """Raise ValueError if one layer is given to a method that acts at several."""
    if layer is not None:
        raise ValueError(
            f"Each part of Layers acts at its own layer, and layer={layer} would put them all at one layer: leave "
            "layer= out, or steer by one part, method.parts[i]."
        )


def layer_of(fitted: int | None, given: int | None) -> int:
    """The given layer, or else the fitted one. Raises ValueError if both are None."""
    layer = fitted if given is None else given
    if layer is None:
        raise ValueError("This method was fitted without a layer: pass layer=, for example layer=6.")
    return layer
