"""The weights that write to the residual stream, and taking directions out of what they write, for good.

The stream of a pre-norm transformer is a sum: what the embeddings write, then what the attention and the MLP of every
block write. A map P = I − T·UUᵀ of each of these is one of the matrices that write them, W ↦ PW and b ↦ Pb. Torch
modules are told by their names, as no model library is imported here: those of a HookedTransformer, and those of a
Hugging Face model, alone or within a TransformerBridge or an nnsight model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from odesteer_tl.data.activations import processing_seen_in

WRITERS = ("o_proj", "o", "c_proj", "dense", "out_proj", "wo", "down_proj", "fc_out", "fc2", "dense_4h_to_h", "w2")
"""What architectures call the linear maps of a block that write to the stream."""

NUMBERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
"""What a HookedTransformer calls the same; d_model is their last axis."""

Writer = tuple[torch.nn.Module, str, int]
"""A module, the name of its parameter, and the axis of that which is d_model."""


def root_of(model: Any) -> Any:
    """The torch module that holds a model's weights: of a bridge and of an nnsight model the Hugging Face model.

    Raises ValueError for what is neither of these, nor a HookedTransformer or a Hugging Face model, and for adapters.
    """
    if all(hasattr(model, name) for name in ("cfg", "run_with_cache")):
        return model.original_model if hasattr(model, "original_model") else model
    if hasattr(model, "_module"):
        return model._module
    if hasattr(model, "peft_config"):
        raise ValueError("The weights of an adapter write to the stream, too: fold model.merge_and_unload().")
    if all(hasattr(model, name) for name in ("config", "get_input_embeddings", "named_modules")):
        return model
    raise ValueError(
        "Weights are folded in a HookedTransformer or a TransformerBridge of TransformerLens, in an nnsight model, or "
        f"in a Hugging Face model, got {type(model).__name__}: ot.load_model(name) loads one."
    )


def folded(model: Any, directions: Tensor, T: float, processing: str = "unknown") -> Callable[[], None]:
    """Take the share T of `directions` [k, d_model], orthonormal, out of all that writes to the stream of `model`.

    Returns what undoes it. `processing` is that of the weights that the directions were found on. Raises ValueError,
    the model as it was, where the weights are quantised, computed of others, elsewhere or processed otherwise, inside a
    steering block, and where the stream still has the directions with T = 1, as it does where a norm stands behind the
    matrices (Gemma-2, OLMo-2).
    """
    with torch.inference_mode(False):  # the new weights may be trained, also where this is called in inference mode
        return _folded(model, directions, T, processing)


def _folded(model: Any, directions: Tensor, T: float, processing: str) -> Callable[[], None]:
    root = root_of(model)
    blocks = _blocks(root)
    writers = list(_writers(root, blocks))
    _check(root, writers, directions, processing)
    if any(_steered(module) for module in root.modules()):
        raise ValueError(
            "A steering block is open on this model, and would steer the pass that checks the folded weights: fold "
            "before the block begins, or after it ends."
        )
    undo = _replaced(root, writers, directions, 1.0)
    try:
        left = _left(model, root, blocks, writers, directions)
    finally:
        undo()
    eps = torch.finfo(next(iter(_parameters(writers))).dtype).eps
    if not left * directions.shape[1] ** 0.5 <= max(1e-3, 16 * eps):
        raise ValueError(
            f"The residual stream of this {type(root).__name__} keeps {left:.2g} of its norm along the directions when "
            "they are taken out of all weights that are known to write to it: a norm behind these weights, weights of "
            "other names or copies of them write to it. Steer with hooks: method.everywhere(n_layers), positions='all'."
        )
    return _replaced(root, writers, directions, T)


def _blocks(root: Any) -> Any:
    if hasattr(root, "run_with_cache"):
        return root.blocks
    config = getattr(root, "config", None)
    depth = getattr(getattr(config, "text_config", None) or config, "num_hidden_layers", None)
    found = [
        module
        for module in root.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth and _attends(module[0])
    ]
    if len(found) != 1:
        raise ValueError(
            f"Weights are folded where one list holds the decoder blocks; a {type(root).__name__} has {len(found)} of "
            f"{depth} blocks with attention."
        )
    return found[0]


def _steered(module: torch.nn.Module) -> bool:
    """Whether a steering block follows the passes through this module."""
    watched = getattr(module.__dict__.get("forward"), "around", ())
    return bool(watched) or any(hasattr(hook, "steers") for hook in module._forward_pre_hooks.values())


def _attends(block: Any) -> bool:
    return any("attn" in name or "attention" in name for name, _ in block.named_modules())


def _writers(root: Any, blocks: Any) -> Iterator[Writer]:
    """Embeddings outside of the blocks, then what writes in each block; ValueError where a block has less than two."""
    inside = {id(module) for block in blocks for module in block.modules()}
    yield from (writer for module in root.modules() if id(module) not in inside for writer in _embeds(module))
    for number, block in enumerate(blocks):
        found = []
        for path, module in block.named_modules():
            leaf = path.removesuffix("._original_component").rpartition(".")[2]
            found += [(module, name, -1) for name in NUMBERS if name in module._parameters]
            own = module._parameters or is_parametrized(module)  # not one that a bridge has put around another
            if leaf in WRITERS and isinstance(getattr(module, "weight", None), Tensor) and own:
                linear = isinstance(module, torch.nn.Linear)  # else as Conv1D, [in, out]
                found.append((module, "weight", 0 if linear else -1))
                found += [(module, "bias", -1)] if module._parameters.get("bias") is not None else []
        if sum(name not in ("bias", "b_O", "b_out") for _, name, _ in found) < 2:
            parts = [path for path, module in block.named_modules() if isinstance(module, torch.nn.Linear)]
            raise ValueError(
                f"In a block the attention and the MLP write to the stream, by maps called {', '.join(WRITERS)}; block "
                f"{number} of this {type(root).__name__} has {len(found)} of them, and the linear parts "
                f"{', '.join(parts) or 'none'}. Quantised layers are none: load the model in a float type."
            )
        yield from found


def _embeds(module: torch.nn.Module) -> list[Writer]:
    if isinstance(module, torch.nn.Embedding):
        return [(module, "weight", -1)]
    return [(module, name, -1) for name in NUMBERS if name in module._parameters]


def _parameters(writers: list[Writer]) -> list[Tensor]:
    return [getattr(module, name) for module, name, _ in writers]


def _check(root: Any, writers: list[Writer], directions: Tensor, processing: str) -> None:
    d_model = directions.shape[1]
    for (module, name, axis), weight in zip(writers, _parameters(writers), strict=True):
        what = f"{name} {tuple(weight.shape)} of a {type(module).__name__}"
        if name not in module._parameters:
            raise ValueError(
                f"The {what} is computed of others (a parametrization, weight norm, pruning): make it a parameter "
                "first, with torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove."
            )
        if weight.is_meta:
            raise ValueError(f"The {what} is not here: load the weights (an nnsight model's with model.dispatch()).")
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ValueError(f"The {what} is quantised ({weight.dtype}): load the model in a float type to fold it.")
        if weight.shape[axis] != d_model:
            raise ValueError(f"The directions have {d_model} numbers, and the {what} writes {weight.shape[axis]}.")
    lens = hasattr(root, "run_with_cache") or any(hasattr(part, "_original_component") for part in root.modules())
    rows = _parameters(writers)[0][:256].detach().float().cpu()
    here = processing_seen_in(rows) if lens else "raw"
    if processing != "unknown" and (processing == "centred") != (here == "centred"):
        raise ValueError(
            f"The directions were found on {processing} weights, and these are {here}: their streams differ by the "
            "mean of each activation. Fit on this model, or load it with the same processing."
        )


def _replaced(root: Any, writers: list[Writer], directions: Tensor, T: float) -> Callable[[], None]:
    """Put new parameters in place of the old ones, which are kept; what shared one and does not write keeps the old."""
    ours = {(id(module), name) for module, name, _ in writers}
    old = {id(weight): weight for weight in _parameters(writers)}
    tied = any(
        id(weight) in old and (id(module), name) not in ours
        for module in root.modules()
        for name, weight in module._parameters.items()
    )
    config: Any = getattr(root, "config", None)
    was_tied = getattr(config, "tie_word_embeddings", None)
    new: dict[int, torch.nn.Parameter] = {}
    kept = []
    for module, name, axis in writers:
        weight: Any = getattr(module, name)
        if id(weight) not in new:
            new[id(weight)] = torch.nn.Parameter(_without(weight.detach(), axis, directions, T), weight.requires_grad)
        kept.append((module, name, weight, new[id(weight)]))
    for module, name, _, fresh in kept:
        setattr(module, name, fresh)
    if tied and was_tied:
        config.tie_word_embeddings = False  # or saving would tie them again

    def undo() -> None:
        there = {id(module) for module in root.modules()}
        if any(
            id(module) not in there or getattr(module, name) is not fresh or fresh.shape != weight.shape
            for module, name, weight, fresh in kept
        ):
            raise RuntimeError(
                "These weights were replaced or resized since, or this was undone: undo what came later first."
            )
        for module, name, weight, fresh in kept:
            if (weight.device, weight.dtype) != (fresh.device, fresh.dtype):  # the model was moved in between
                weight.data = weight.data.to(fresh)
            setattr(module, name, weight)
        if tied and was_tied:
            config.tie_word_embeddings = was_tied

    return undo


def _without(weight: Tensor, axis: int, directions: Tensor, T: float) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    basis = directions.to(weight.device, dtype)
    rows = weight.movedim(axis, -1).to(dtype)
    return (rows - T * (rows @ basis.T) @ basis).movedim(-1, axis).to(weight.dtype).contiguous()


@torch.no_grad()
def _left(model: Any, root: Any, blocks: Any, writers: list[Writer], directions: Tensor) -> float:
    """The largest share of an activation's norm that lies along the directions, at the ends of all blocks."""
    seen: list[Tensor] = []

    def see(module: Any, args: Any, out: Any) -> None:
        value = out[0] if isinstance(out, (tuple, list)) else out
        seen.append(value.detach().float())

    handles = [block.register_forward_hook(see) for block in blocks]
    modes = [(module, module.training) for module in root.modules()]
    root.eval()  # dropout writes to the stream, too
    try:
        rows = _parameters(writers)[0]
        tokens = torch.arange(min(8, len(rows)), device=rows.device).unsqueeze(0)
        (root if hasattr(model, "_module") else model)(tokens)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    basis, tiny = directions.float(), torch.finfo(torch.float32).tiny  # a pad's embedding may be 0
    return max(float(((x @ basis.T.to(x.device)).norm(dim=-1) / x.norm(dim=-1).clamp_min(tiny)).max()) for x in seen)
