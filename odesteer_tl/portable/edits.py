"""Edits: what an intervention reads and writes, in a form that every backend can carry out.

A method never sees a model. It returns `Edit(read, write, apply)`. A backend takes the value at `read`, and puts
`apply(read_value, write_value, state)` at `write`, on the chosen tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from odesteer_tl.portable.frozen import Frozen
from odesteer_tl.portable.sites import Site


class Edit(Frozen):
    """Replace the value at `write` by `apply(value at read, value at write, state)`, on the chosen tokens.

    Both values are `[chosen, width of the site]`; `apply` returns the new value at `write`, same shape and dtype.
    `read` may not come after `write` in the model. With `of_query` the read value of a token is instead
    `of_query(value of its prompt's last token)`, computed once per prompt and kept while the prompt is continued;
    `of_query` maps `[rows, width]` to `[rows, …]`.
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
    """The state of one method in one forward pass; a backend makes a new one for every pass and method.

    `rows[i]` is the batch row of chosen token i; if a function is given instead, it is called at the first use.
    `memory` carries values from one edit of the pass to a later one.
    """

    def __init__(self, rows: Tensor | Callable[[], Tensor], memory: dict[str, Any] | None = None) -> None:
        self._rows = rows
        self.memory = {} if memory is None else memory

    @property
    def rows(self) -> Tensor:
        if not isinstance(self._rows, Tensor):
            self._rows = self._rows()
        return self._rows
