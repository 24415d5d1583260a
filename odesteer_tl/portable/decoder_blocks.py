"""The decoder blocks of a Hugging Face model: their path, the residual stream in their inputs and outputs, and the
output projection of attention. For nnsight, which wraps such a model, and for the model alone.

This file is sent to servers, so it uses torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")

PROJECTIONS = ("o_proj", "c_proj", "dense", "out_proj", "wo", "attn_out")
"""The names of attention's output projection in different architectures: the linear map from the concatenated heads to
the residual stream."""


def path_of_blocks(module: Any, config: Any) -> str:
    """The dotted path of the list of decoder blocks: its length is that of the configuration, its items have attention.

    Raises ValueError if no list, or more than one, fits.
    """
    depth = _depth(config)
    paths = [
        path
        for path, modules in _lists(module)
        if len(modules) == depth
        and any(_attends(child) for child in modules)
        and not any(word in path for word in OTHER_TOWERS)
    ]
    if len(paths) != 1:
        count = f"{len(paths)} lists of decoder blocks ({', '.join(paths)})" if paths else "no list of decoder blocks"
        expectation = (
            "whose configuration does not say how many it has" if depth is None else f"where {depth} are expected"
        )
        raise unknown_blocks(module, f"found {count} in a {type(module).__name__}, {expectation}")
    return paths[0]


def is_list(module: Any) -> bool:
    """Whether a module is a list of blocks."""
    return isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential))


def unknown_blocks(module: Any, what: str) -> ValueError:
    """The error for decoder blocks that are not found, with the lists that the model has."""
    lists = ", ".join(f"{path} ({len(modules)})" for path, modules in _lists(module)) or "none"
    return ValueError(
        f'No decoder blocks: {what}. Pass their list: blocks="transformer.h" or blocks=model.transformer.h. The module '
        f"lists of this model, with their lengths: {lists}."
    )


def value_in(output: Any) -> Tensor:
    """The residual stream [batch, pos, d_model] in the output of a block: the tensor itself, or the first of a tuple.

    Raises ValueError for anything else.
    """
    value = output[0] if isinstance(output, (tuple, list)) and len(output) > 0 else output
    if not isinstance(value, Tensor) or value.ndim != 3:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            "A decoder block returns [batch, pos, d_model], alone or first in a tuple; this one returned "
            f"{what}. Pass blocks= with the list of decoder blocks, if this is not one."
        )
    return value


def output_with(output: Any, value: Tensor) -> Any:
    """The output of a block with `value` in place of `value_in(output)`."""
    return type(output)([value, *output[1:]]) if isinstance(output, (tuple, list)) else value


def entering(inputs: Any) -> Tensor:
    """The activations [batch, pos, width] in a module's (args, kwargs). Raises ValueError for other shapes."""
    args, kwargs = inputs
    value = args[0] if args else kwargs[_key(kwargs)]
    if not isinstance(value, Tensor) or value.ndim != 3:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"Activations are [batch, pos, width], and the input here is {shape}: this site cannot be read. Choose "
            "another layer or site."
        )
    return value


def inputs_with(inputs: Any, value: Tensor) -> Any:
    """A module's (args, kwargs), with `value` in place of `entering(inputs)`."""
    args, kwargs = inputs
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, _key(kwargs): value})


def is_attention(name: str) -> bool:
    """Whether a part of a block has a name that some architecture uses for attention."""
    return "attn" in name or "attention" in name


def path_of_projection(block: Any) -> str:
    """The path, within a block, of the attention's output projection; z is its input.

    Raises ValueError, naming the attention's linear parts, unless exactly one of them is in `PROJECTIONS`.
    """
    parts = [
        path
        for name, child in block.named_children()
        if is_attention(name)
        for path, module in child.named_modules(prefix=name)
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]
    projections = [path for path in parts if path.rpartition(".")[2] in PROJECTIONS]
    if len(projections) != 1:
        raise ValueError(
            "z is the input of attention's output projection, which is called one of "
            f"{', '.join(PROJECTIONS)}; found {', '.join(projections) or 'none'} in a {type(block).__name__}, whose "
            f"attention has the linear parts {', '.join(parts) or 'none'}. Choose another site, such as resid_post."
        )
    return projections[0]


def check_biases(block: Any, name: str, fitted: str, processing: str) -> None:
    """Raise ValueError at z of a block with attention biases if the method was fitted on folded weights and these are
    raw, or the other way round: folding (fold_value_biases) takes a constant out of z."""
    if name != "z" or fitted == "unknown" or (fitted == "raw") == (processing == "raw"):
        return
    biases = [
        parameter
        for part, child in block.named_children()
        if is_attention(part)
        for path, parameter in child.named_parameters()
        if path.rpartition(".")[2] in ("bias", "b_V", "b_O")
    ]
    if any(parameter.is_meta or bool(parameter.any()) for parameter in biases):
        raise ValueError(
            f"The method was fitted at z on {fitted} weights and this model has {processing} ones: folding the value "
            "biases shifts z by a constant. Collect on this model, or load it with the same processing."
        )


def _lists(module: Any) -> list[tuple[str, Any]]:
    """The module lists in `module` with their paths, in the order of `named_modules`, which takes several times as
    long for each steering block."""
    found, seen, left = [], set(), [("", module)]
    while left:
        path, child = left.pop()
        if child is None or child in seen:
            continue
        seen.add(child)
        if isinstance(child, torch.nn.ModuleList):
            found.append((path, child))
        left += [(f"{path}.{name}" if path else name, part) for name, part in reversed(child._modules.items())]
    return found


def _depth(config: Any) -> int | None:
    """The number of decoder blocks by the configuration; None if it has none, or describes an encoder and a decoder."""
    if getattr(config, "is_encoder_decoder", False):
        return None
    return getattr(getattr(config, "text_config", None) or config, "num_hidden_layers", None)


def _attends(block: Any) -> bool:
    """Whether it has attention as a direct part, under any name; experts, adapters and norms do not."""
    return any(is_attention(name) for name, _ in block.named_children())


def _key(kwargs: Any) -> str:
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
