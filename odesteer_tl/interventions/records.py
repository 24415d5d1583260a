"""Recordings: what the edits of a block did to each token, kept where `steering(record=True)` asks for it.

h(a) and ‖a(T) − a‖/‖a‖ are computed in the pass, on the model's device, so that no activations are kept and nothing
waits for the device; they are copied when they are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer_tl.portable.apply_edits import OwnedEdit, Selection
from odesteer_tl.portable.precision import compute_dtype
from odesteer_tl.remote.payloads import moved

TextsOf = Callable[[Sequence[int]], list[str]]
"""The texts of the tokens of one text, by their ids."""


class TokenRecord(NamedTuple):
    """What one edit did to one token.

    `method` wrote to `site` of `layer`. `prompt` counts the prompts of the block (calls of the model that begin anew),
    `row` the batch rows and `position` the real tokens of a row, all from 0. `token_id` and `token` are None where the
    model was called with embeddings, `token` also where it has no tokenizer; where several tokens make a
    character, the first holds it, and ◦ stands for the others. `generated`: it follows the prompt.
    `h_before` and `h_after`: the method's barrier h(a) before and after the edit, None where it has none for this site.
    `displacement`: ‖a(T) − a‖/‖a‖, 0 where not `steered`. `edit`: the number of the edit, in the order of the methods.
    """

    layer: int
    site: str
    method: str
    prompt: int
    row: int
    position: int
    token_id: int | None
    token: str | None
    generated: bool
    steered: bool
    h_before: float | None
    h_after: float | None
    displacement: float
    edit: int


@dataclass(frozen=True, eq=False)
class RecordedEdit:
    """Where an edit writes, of which `method` (the `owner`-th of the block), and its barrier h with a formula, both
    None where it has none."""

    layer: int
    site: str
    method: str
    owner: int
    barrier: Any
    formula: str | None

    @classmethod
    def of(cls, owned: OwnedEdit, method: Any) -> "RecordedEdit":
        edit = owned.edit
        at_own_site = edit.read == edit.write and edit.of_query is None
        barrier = getattr(method, "barrier", None) if at_own_site else None
        written = getattr(getattr(method, "view", None), "h", "yours")
        formula = None if barrier is None else "your barrier" if written == "yours" else written
        return cls(edit.write.layer, edit.write.name, type(method).__name__, owned.owner, barrier, formula)

    @property
    def name(self) -> str:
        """As in "ODESteer, layer 6"."""
        return f"{self.method}, layer {self.layer}" + (f", {self.site}" if self.site != "resid_post" else "")


class _Part(NamedTuple):
    """What one edit did in one pass, at its real tokens [n]."""

    edit: int
    selection: Selection
    tokens: Tensor | None
    h: tuple[Tensor, Tensor] | None
    displacements: Tensor


class Recording:
    """The records of a steering block. `edits`: those of its methods, in their order."""

    def __init__(self, edits: list[RecordedEdit], texts_of: TextsOf | None = None) -> None:
        self.edits, self._texts_of = edits, texts_of
        self._parts: list[_Part] = []
        self._barriers: dict[tuple[Any, ...], Any] = {}

    @torch.no_grad()
    def add(self, number: int, selection: Selection, before: Tensor, after: Tensor) -> None:
        """Record an edit, by its number: the values [batch, pos, *width] at its site, of all tokens."""
        track = selection.track
        index = tuple(part.to(before.device, non_blocking=True) for part in track.real.nonzero(as_tuple=True))
        dtype = compute_dtype(before.dtype)
        a, end = (value.flatten(2)[index].to(dtype) for value in (before, after))
        barrier, h = self._barrier(number, before.device, dtype), None
        if barrier is not None:
            ends = barrier.value(a), barrier.value(end)
            h = ends[0].reshape(len(a)), ends[1].reshape(len(a))  # a value of one's own may be [n, 1]
        ids = track.tokens
        ids = None if ids is None or ids.ndim != 2 or ids.is_floating_point() else ids.clone()  # some reuse the tensor
        self._parts.append(_Part(number, selection, ids, h, (end - a).norm(dim=-1) / a.norm(dim=-1)))

    @property
    def tokens(self) -> list[TokenRecord]:
        """Every real token that the block saw, steered or not, by prompt, row, position and edit. A token that was
        computed in several passes, as without a KV cache, counts once, as in the last."""
        found: dict[tuple[int, ...], TokenRecord] = {}
        for part in self._parts:
            found |= {(one.prompt, one.row, one.position, part.edit): one for one in self._read(part)}
        records = [found[key] for key in sorted(found)]
        texts = self._texts(records)
        return [one._replace(token=texts.get((one.prompt, one.row, one.position))) for one in records]

    def _texts(self, records: list[TokenRecord]) -> dict[tuple[int, int, int], str]:
        """The text of each token by prompt, row and position; a row is read as a whole."""
        rows: dict[tuple[int, int], dict[int, int]] = {}
        texts_of = self._texts_of
        if texts_of is None:
            return {}
        for one in records:
            if one.token_id is not None:
                rows.setdefault((one.prompt, one.row), {})[one.position] = one.token_id
        return {
            (*row, position): text
            for row, ids in rows.items()
            for position, text in zip(ids, texts_of(list(ids.values())), strict=True)
        }

    def _read(self, part: _Part) -> list[TokenRecord]:
        selection, track, edit = part.selection, part.selection.track, self.edits[part.edit]
        rows, columns = track.real.nonzero(as_tuple=True)
        chosen = torch.zeros(selection.shape, dtype=torch.bool, device="cpu")
        chosen[selection.rows, selection.columns] = True
        steered, positions = chosen[rows, columns], track.index[rows, columns]
        ids = None if part.tokens is None else part.tokens.cpu()[rows, columns].tolist()
        before, after = (None, None) if part.h is None else (h.tolist() for h in part.h)
        moved_by = torch.where(steered, part.displacements.cpu(), 0.0).tolist()
        generated = (positions >= selection.lengths[rows]).tolist()
        return [
            TokenRecord(
                edit.layer, edit.site, edit.method, selection.prompt, row, position,
                None if ids is None else ids[n], None, generated[n], bool(steered[n]),
                None if before is None else before[n], None if after is None else after[n], moved_by[n],
                part.edit,
            )
            for n, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True))
        ]  # fmt: skip

    def _barrier(self, number: int, device: torch.device, dtype: torch.dtype) -> Any:
        """The barrier of an edit on a device and in a dtype; each copy is made once."""
        barrier, key = self.edits[number].barrier, (number, device, dtype)
        if barrier is not None and key not in self._barriers:
            self._barriers[key] = moved(barrier, device, dtype)
        return self._barriers.get(key)
