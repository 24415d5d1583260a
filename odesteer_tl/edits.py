"""Edits: what an intervention reads and writes, in words that every backend can carry out.

A method never sees a model. It says `Edit(read, write, apply)`; a backend fetches the value at `read`, and puts
`apply(read_value, write_value, state)` at `write`, on the chosen tokens and no others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from odesteer_tl.shapes import Chosen
from odesteer_tl.strengths import SITES, check_index, site_name
from odesteer_tl.travelling import State

__all__ = ["Edit", "Site", "SiteName", "State"]

SiteName = Literal["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""What a block passes through, in that order; `z` is what its attention heads give, [.., n_heads·d_head]."""

assert get_args(SiteName) == SITES


@dataclass(frozen=True)
class Site:
    """A place in the model: `blocks.{layer}.hook_{name}` in TransformerLens words, layers counted from 0."""

    layer: int
    name: SiteName = "resid_post"

    def __post_init__(self) -> None:
        check_index(self.layer)

    @property
    def hook_name(self) -> str:
        inner = "attn." if self.name == "z" else ""
        return f"blocks.{self.layer}.{inner}hook_{self.name}"

    @classmethod
    def fitted(cls, hook_name: str | None, layer: int) -> "Site":
        """The site that a hook of TransformerLens is named after (None: `resid_post`), at `layer`. Raises ValueError
        for a hook at which nothing is steered."""
        return cls(layer, cast(SiteName, site_name(hook_name)))


@dataclass(frozen=True)
class Edit:
    """Replace the value at `write` by `apply(value at read, value at write, state)`, on the chosen tokens.

    Both values are `[chosen, width of the site]`; `apply` returns the new value at `write`, same shape and dtype.
    `read` may not lie after `write` in the model. With `of_query` the read value of a token is instead
    `of_query(value of its prompt's last token)`, computed once per prompt and kept while that is continued; `of_query`
    maps `[rows, width]` to one row of numbers for each.
    """

    read: Site
    write: Site
    apply: Callable[[Chosen, Chosen, State], Chosen]
    of_query: Callable[[Chosen], Chosen] | None = None
