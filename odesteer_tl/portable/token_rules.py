"""The rules that choose which tokens are steered: the meaning of "decoding", "prompt", a slice or a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def checked(positions: Any) -> Any:
    """Returns `positions`. Raises ValueError for a wrong value, and lists the possible ones."""
    if isinstance(positions, slice):
        edges = [edge for edge in (positions.start, positions.stop) if edge is not None]
        step = 1 if positions.step is None else positions.step
        if any(not hasattr(each, "__index__") for each in (*edges, step)) or min([0, *edges]) < 0 or step < 1:
            raise ValueError(
                "A slice of positions counts forwards, in whole tokens, from the row's first real one, got "
                f'{positions}; for the last prompt token and what follows, type positions="decoding".'
            )
        if positions.stop is not None and positions.stop <= (positions.start or 0):
            raise ValueError(f"{positions} chooses no token: its end lies before its first one.")
    elif isinstance(positions, Tensor):
        if positions.dtype != torch.bool or positions.ndim not in (1, 2) or positions.shape[-1] == 0:
            raise ValueError(
                "A mask of positions is bool, [pos] or [batch, pos], with at least one position, got "
                f"{positions.dtype} {positions.shape}."
            )
    elif not isinstance(positions, str) or positions not in ("decoding", "generated", "prompt", "all"):
        raise ValueError(
            'positions must be "decoding", "generated", "prompt", "all", a slice or a bool mask that counts from the '
            f"row's first real token; got {positions!r}."
        )
    return positions


def lengths_of(given: Any) -> Tensor:
    """Prompt lengths as they were given, one number or one per row, on the CPU. Raises ValueError for anything else."""
    try:
        lengths = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        lengths = None
    if lengths is None or lengths.dtype.is_floating_point or lengths.dtype in (torch.bool, torch.complex64):
        raise ValueError(f"prompt_lengths are whole numbers of tokens, such as 5 or [5, 3], got {given!r}.")
    if lengths.ndim > 1 or bool((lengths < 0).any()):
        raise ValueError(f"prompt_lengths are one number, or one per row, from 0; got {given!r}.")
    return lengths


def per_row(values: Any, batch: int, beams: int = 1) -> Tensor:
    """One value per row of the batch, on the CPU; `values` holds one for all rows, or one per prompt.

    Raises ValueError for another number of values.
    """
    values = torch.as_tensor(values, device="cpu")
    if values.ndim == 0:
        return values.expand(batch)
    if len(values) * beams != batch:
        raise ValueError(
            f"prompt_lengths and masks of positions need one entry per row: the model sees {batch} rows, "
            f"{len(values)} were given."
        )
    return values.repeat_interleave(beams, 0)


def chosen_by(positions: Any, index: Tensor, lengths: Tensor, beams: int = 1) -> Tensor:
    """The tokens that a rule (see `positions.Positions`) chooses, as a bool mask [batch, pos]; pads are not excluded.

    `index` [batch, pos] numbers the real tokens of each row, `lengths` [batch] are the prompt lengths; both on the CPU.
    A rule that is a mask has one row, or one per prompt.
    """
    ends = lengths.unsqueeze(1)
    if isinstance(positions, slice):
        first = positions.start or 0
        inside = (index >= first) & ((index - first) % (positions.step or 1) == 0)
        return inside if positions.stop is None else inside & (index < positions.stop)
    if isinstance(positions, Tensor):
        mask = positions.cpu() if positions.ndim == 1 else per_row(positions, len(index), beams)
        mask = mask.expand(len(index), -1)
        return mask.gather(1, index.clamp(0, mask.shape[1] - 1)) & (index < mask.shape[1])
    if positions == "decoding":
        return index >= ends - 1
    if positions == "generated":
        return index >= ends
    if positions == "prompt":
        return index < ends
    return torch.ones_like(index, dtype=torch.bool)


def is_unambiguous(positions: Any, given: Any, needs_prompt_end: bool) -> bool:
    """Whether the choice of tokens is clear in a multi-token pass after cached tokens: prompt lengths are `given`, or
    neither the positions nor an edit (`needs_prompt_end`) depend on where the prompt ends."""
    return given is not None or (not needs_prompt_end and (not isinstance(positions, str) or positions == "all"))
