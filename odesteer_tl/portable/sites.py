"""Sites: the places of a model that edits read and write, and their order in a forward pass."""

from __future__ import annotations

from typing import Any, Literal, get_args

from odesteer_tl.portable.frozen import Frozen

SiteName = Literal["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""What a block passes through, in that order; `z` is what its attention heads give, [.., n_heads·d_head]."""

SITES: tuple[str, ...] = get_args(SiteName)
"""The sites of a block, in the order in which a block comes to them."""


class Site(Frozen):
    """A place in the model: `blocks.{layer}.hook_{name}` in TransformerLens words, layers counted from 0."""

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
        """The site that a hook of TransformerLens is named after (None: `resid_post`), at `layer`. Raises ValueError
        for a hook at which nothing is steered."""
        name: Any = site_name(hook_name)
        return Site(layer, name)


def place_of(site: Any) -> tuple[int, int]:
    """Where a site comes in a forward pass, to sort by: its layer, and its number within the block."""
    return site.layer, SITES.index(site.name)


def site_name(hook_name: str | None) -> str:
    """The site that a hook of TransformerLens is named after: "z" of "blocks.6.attn.hook_z"; None: "resid_post".

    Raises ValueError for a hook at which nothing is steered.
    """
    name = "resid_post" if hook_name is None else hook_name.rpartition("hook_")[2]
    if name not in SITES:
        raise ValueError(f"Methods act at {', '.join(SITES)}; this one was fitted at {hook_name}.")
    return name


def check_index(layer: int) -> None:
    """Raise ValueError for a layer that is no integer, below 0, or one of which no model has so many."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise ValueError(f"Layers are block indices counted from 0, got {layer!r}.")
    if layer >= 10_000:
        raise ValueError("Layers are block indices counted from 0, and no model has 10,000 of them.")


def check_no_layer(layer: int | None) -> None:
    """Raise ValueError where one layer is given to a method that acts at several."""
    if layer is not None:
        raise ValueError(
            f"Layers act each part at its own layer, and layer={layer} would put them all at one: leave layer= out, or "
            "steer by one part, method.parts[i]."
        )


def layer_of(fitted: int | None, given: int | None) -> int:
    """The layer given, or else the one fitted. Raises ValueError where neither is known."""
    layer = fitted if given is None else given
    if layer is None:
        raise ValueError("This method was fitted without a layer: pass layer=, for example layer=6.")
    return layer
