"""The sites of a decoder block in an nnsight model: where each is read and written, and the projection that z enters.

This file travels, like `blocks`: nothing here needs more than torch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.portable.decoder_blocks import check_biases as check_biases
from odesteer_tl.portable.decoder_blocks import entering, output_with, path_of_projection, value_in
from odesteer_tl.portable.decoder_blocks import inputs_with as inputs_with


def check_site(block: Any, name: str) -> None:
    """Raise ValueError for a site that is not read and written in an nnsight model, or not found in this block."""
    if name not in ("resid_pre", "z", "resid_post"):
        raise ValueError(f"In an nnsight model resid_pre, z and resid_post are read and written, not {name}.")
    if name == "z":
        projection_of(block)


def projection_of(block: Any) -> Any:
    """The attention's output projection, as nnsight holds it; z is what enters it.

    Raises ValueError, naming the attention's linear parts, where none or several have a name that is known for it.
    """
    return block.get(path_of_projection(block._module))


def value_at(block: Any, name: str) -> Tensor:
    """The value [batch, pos, width] at a site of a block in the trace under way, which waits for it."""
    if name == "resid_post":
        return value_in(block.output)
    return entering((projection_of(block) if name == "z" else block).inputs)


def put_at(block: Any, name: str, value: Tensor) -> None:
    """Put a value at a site of a block in the trace under way."""
    if name == "resid_post":
        block.output = output_with(block.output, value)
    elif name == "z":
        projection_of(block).input = value
    else:
        block.input = value
