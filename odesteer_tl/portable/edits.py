"""Edits: what an intervention reads and writes, in terms that every backend can carry out.

A method never sees a model. It says `Edit(read, write, apply)`; a backend fetches the value at `read`, and puts
`apply(read_value, write_value, state)` at `write`, on the chosen tokens and no others. The classes are those of
frozen dataclasses, written out, since a dataclass has functions without source, which no server takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NoReturn, get_args

from torch import Tensor

from odesteer_tl.portable.strength import SITES, check_index, site_name

__all__ = ["Edit", "Site", "SiteName", "State"]

SiteName = Literal["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""What a block passes through, in that order; `z` is what its attention heads give, [.., n_heads·d_head]."""

assert get_args(SiteName) == SITES


class Frozen:
    """Compared, hashed and shown by its attributes, which nothing changes."""

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: make another with that {name}.")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


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


class Edit(Frozen):
    """Replace the value at `write` by `apply(value at read, value at write, state)`, on the chosen tokens.

    Both values are `[chosen, width of the site]`; `apply` returns the new value at `write`, same shape and dtype.
    `read` may not lie after `write` in the model. With `of_query` the read value of a token is instead
    `of_query(value of its prompt's last token)`, computed once per prompt and kept while that is continued; `of_query`
    maps `[rows, width]` to one row of numbers for each.
    """

    read: Site
    write: Site
    apply: Callable[[Tensor, Tensor, State], Tensor]
    of_query: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        read: Site,
        write: Site,
        apply: Callable[[Tensor, Tensor, State], Tensor],
        of_query: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.__dict__.update(read=read, write=write, apply=apply, of_query=of_query)


class State:
    """What one forward pass knows of its chosen tokens; a backend makes a fresh one for every pass and method.

    `rows[i]` is the batch row of chosen token i, found when it is first asked for where a function is given in its
    place; `memory` carries values from one edit to a later one of the pass.
    """

    def __init__(self, rows: Tensor | Callable[[], Tensor], memory: dict[str, Any] | None = None) -> None:
        self._rows = rows
        self.memory = {} if memory is None else memory

    @property
    def rows(self) -> Tensor:
        if not isinstance(self._rows, Tensor):
            self._rows = self._rows()
        return self._rows
