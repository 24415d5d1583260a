"""Rows of tokens as a tree: what they begin with alike is one path, which a model computes once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenTree:
    """One node for each different beginning of the rows, a parent before its children.

    `tokens` [node]; `sees` [node, node]: itself and its ancestors, which is what it attends to; `depth` [node]: how
    many ancestors it has; `paths`: of each row, the nodes of its tokens.
    """

    tokens: Int[Tensor, " node"]
    sees: Bool[Tensor, "node node"]
    paths: list[list[int]]

    @property
    def depth(self) -> Int[Tensor, " node"]:
        """From 0, the root."""
        return self.sees.sum(1) - 1

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TokenTree":
        """The tree of rows that begin with the same token. Raises ValueError for others."""
        if not rows or len({row[0] if row else None for row in rows}) != 1 or not rows[0]:
            raise ValueError("A tree of tokens needs rows that begin with the same token.")
        nodes: dict[tuple[int, int], int] = {}  # by parent and token
        paths = []
        for row in rows:
            path = [-1]
            for token in row:
                path.append(nodes.setdefault((path[-1], token), len(nodes)))
            paths.append(path[1:])
        sees = torch.eye(len(nodes), dtype=torch.bool, device="cpu")
        for (parent, _), node in nodes.items():
            if parent >= 0:
                sees[node] |= sees[parent]
        return cls(torch.tensor([token for _, token in nodes], device="cpu"), sees, paths)
