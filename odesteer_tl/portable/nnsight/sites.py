"""The sites of a decoder block in an nnsight model: reading and writing their values in a trace.

This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.portable.decoder_blocks import check_biases as check_biases
from odesteer_tl.portable.decoder_blocks import entering, output_with, path_of_projection, value_in
from odesteer_tl.portable.decoder_blocks import inputs_with as inputs_with


def check_site(block: Any, name: str) -> None:
    """Raise ValueError for a site that an nnsight model does not support, or that this block does not have."""
    if name not in ("resid_pre", "z", "resid_post"):
        raise ValueError(
            f"The sites of an nnsight model are resid_pre, z and resid_post, got {name}: choose one of them."
        )
    if name == "z":
        projection_of(block)


def projection_of(block: Any) -> Any:
    """The attention's output projection, as nnsight wraps it; z is its input.

    Raises ValueError as `decoder_blocks.path_of_projection` does.
    """
    return block.get(path_of_projection(block._module))


def value_at(block: Any, name: str) -> Tensor:
    """The value [batch, pos, width] at a site of a block. The running trace waits until the model computes it."""
    if name == "resid_post":
        return value_in(block.output)
    return entering((projection_of(block) if name == "z" else block).inputs)


def put_at(block: Any, name: str, value: Tensor) -> None:
    """Replace the value at a site of a block in the running trace."""
    if name == "resid_post":
        block.output = output_with(block.output, value)
    elif name == "z":
        projection_of(block).input = value
    else:
        block.input = value
