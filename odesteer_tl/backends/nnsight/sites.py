"""The sites of a decoder block in an nnsight model: where each is read and written, and the projection that z enters.

This file travels, like `blocks`: nothing here needs more than torch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.backends.nnsight.blocks import is_attention, output_with, value_in

PROJECTIONS = ("o_proj", "c_proj", "dense", "out_proj", "wo", "attn_out")
"""What architectures call the linear map from the heads of attention, side by side, to the residual stream."""


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
    parts = [
        path
        for name, child in block._module.named_children()
        if is_attention(name)
        for path, module in child.named_modules(prefix=name)
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]
    found = [path for path in parts if path.rpartition(".")[2] in PROJECTIONS]
    if len(found) != 1:
        raise ValueError(
            f"z is what enters the output projection of attention, which is called {', '.join(PROJECTIONS)}; found "
            f"{', '.join(found) or 'none'} in a {type(block._module).__name__}, whose attention has the linear parts "
            f"{', '.join(parts) or 'none'}."
        )
    return block.get(found[0])


def check_biases(block: Any, name: str, fitted: str, here: str) -> None:
    """Raise ValueError for z of a `block` (a torch module) whose attention has biases, where a method was fitted on
    folded weights and these are raw, or the other way round: folding (fold_value_biases) takes a constant out of z."""
    if name != "z" or fitted == "unknown" or (fitted == "raw") == (here == "raw"):
        return
    found = [
        parameter
        for part, child in block.named_children()
        if is_attention(part)
        for path, parameter in child.named_parameters()
        if path.rpartition(".")[2] in ("bias", "b_V", "b_O")
    ]
    if any(parameter.is_meta or bool(parameter.any()) for parameter in found):
        raise ValueError(
            f"The method was fitted at z on {fitted} weights and this model has {here} ones: folding the biases of the "
            "values moves z by a constant. Collect on this model, or load it with the same processing."
        )


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


def entering(inputs: Any) -> Tensor:
    """The activations [batch, pos, width] in a module's (args, kwargs). Raises ValueError for other shapes."""
    args, kwargs = inputs
    value = args[0] if args else kwargs[_key(kwargs)]
    if not isinstance(value, Tensor) or value.ndim != 3:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"Activations are [batch, pos, width], here {shape} enters: this site cannot be read.")
    return value


def inputs_with(inputs: Any, value: Tensor) -> Any:
    """A module's (args, kwargs), with `value` in place of `entering(inputs)`."""
    args, kwargs = inputs
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, _key(kwargs): value})


def _key(kwargs: Any) -> str:
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
