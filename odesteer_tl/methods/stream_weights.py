"""The weights that write to the residual stream, and removing directions from what they write.

The stream of a pre-norm transformer is a sum: what the embeddings write, then what the attention and the MLP of every
block write. To map each of these terms by P = I − T·UUᵀ is to map the matrices that write them, W ↦ PW and b ↦ Pb. No
model library is imported here, so torch modules are recognised by their names: those of a HookedTransformer, and those
of a Hugging Face model, alone or inside a TransformerBridge or an nnsight model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from odesteer_tl.data.origin import processing_seen_in

WRITERS = ("o_proj", "o", "c_proj", "dense", "out_proj", "wo", "down_proj", "fc_out", "fc2", "dense_4h_to_h", "w2")
"""Names, over all architectures, of the linear maps of a block that write to the stream."""

TL_PARAMETERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
"""Names of the same parameters, biases and embeddings in a HookedTransformer; d_model is their last axis."""

Writer = tuple[torch.nn.Module, str, int]
"""A module, the name of its parameter, and the axis of the parameter that is d_model."""


def root_of(model: Any) -> Any:
    """The torch module that holds a model's weights: for a bridge and an nnsight model, their Hugging Face model.

    Raises ValueError for any model but these, a HookedTransformer and a Hugging Face model, and for adapters.
    """
    if all(hasattr(model, name) for name in ("cfg", "run_with_cache")):
        return model.original_model if hasattr(model, "original_model") else model
    if hasattr(model, "_module"):
        return model._module
    if hasattr(model, "peft_config"):
        raise ValueError("The weights of an adapter write to the stream, too: fold model.merge_and_unload() instead.")
    if all(hasattr(model, name) for name in ("config", "get_input_embeddings", "named_modules")):
        return model
    raise ValueError(
        "Weights are folded in a HookedTransformer or a TransformerBridge of TransformerLens, in an nnsight model, or "
        f"in a Hugging Face model, got {type(model).__name__}: pass ot.load_model(name)."
    )


def folded(model: Any, directions: Tensor, T: float, processing: str = "unknown") -> Callable[[], None]:
    """Remove the share T of orthonormal `directions` [k, d_model] from all weights that write to the stream of `model`.

    Returns a function that undoes it. `processing` is that of the weights that the directions were fitted on. Raises
    ValueError and leaves the model unchanged where the weights are quantised, not loaded, computed from others or
    processed in another way, inside a steering block, and where the stream keeps the directions at T = 1, for example
    because a norm follows the matrices (Gemma-2, OLMo-2).
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
    undo = _replace(root, writers, directions, 1.0)
    try:
        share = _share_along(model, root, blocks, writers, directions)
    finally:
        undo()
    eps = torch.finfo(next(iter(_parameters(writers))).dtype).eps
    if not share * directions.shape[1] ** 0.5 <= max(1e-3, 16 * eps):
        raise ValueError(
            f"The residual stream of this {type(root).__name__} keeps {share:.2g} of its norm along the directions "
            "after they are removed from all known weights that write to it: a norm after these weights, weights of "
            "other names, or copies of them write to it. Steer with hooks: method.everywhere(n_layers), "
            "positions='all'."
        )
    return _replace(root, writers, directions, T)


def _blocks(root: Any) -> Any:
    if hasattr(root, "run_with_cache"):
        return root.blocks
    config = getattr(root, "config", None)
    n_layers = getattr(getattr(config, "text_config", None) or config, "num_hidden_layers", None)
    lists = [
        module
        for module in root.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers and _has_attention(module[0])
    ]
    if len(lists) != 1:
        raise ValueError(
            f"Weights are folded in models with one list of decoder blocks; this {type(root).__name__} has "
            f"{len(lists)} lists of {n_layers} blocks with attention."
        )
    return lists[0]


def _steered(module: torch.nn.Module) -> bool:
    """Whether a steering block follows the passes through this module."""
    watched = getattr(module.__dict__.get("forward"), "around", ())
    return bool(watched) or any(hasattr(hook, "steers") for hook in module._forward_pre_hooks.values())


def _has_attention(block: Any) -> bool:
    return any("attn" in name or "attention" in name for name, _ in block.named_modules())


def _writers(root: Any, blocks: Any) -> Iterator[Writer]:
    """The embeddings outside the blocks, then the writers of each block. ValueError for a block with fewer than two
    matrices."""
    inside = {id(module) for block in blocks for module in block.modules()}
    yield from (
        writer for module in root.modules() if id(module) not in inside for writer in _embedding_writers(module)
    )
    for number, block in enumerate(blocks):
        written = []
        for path, module in block.named_modules():
            leaf = path.removesuffix("._original_component").rpartition(".")[2]
            written += [(module, name, -1) for name in TL_PARAMETERS if name in module._parameters]
            own = module._parameters or is_parametrized(module)  # not one that a bridge has put around another
            if leaf in WRITERS and isinstance(getattr(module, "weight", None), Tensor) and own:
                linear = isinstance(module, torch.nn.Linear)  # else as Conv1D, [in, out]
                written.append((module, "weight", 0 if linear else -1))
                written += [(module, "bias", -1)] if module._parameters.get("bias") is not None else []
        matrices = sum(name not in ("bias", "b_O", "b_out") for _, name, _ in written)
        if matrices < 2:
            parts = [path for path, module in block.named_modules() if isinstance(module, torch.nn.Linear)]
            raise ValueError(
                f"The attention and the MLP of a block write to the stream by matrices called {', '.join(WRITERS)}; "
                f"block {number} of this {type(root).__name__} has {matrices} of them, and the linear parts "
                f"{', '.join(parts) or 'none'}. Quantised layers do not count: load the model in a float dtype."
            )
        yield from written


def _embedding_writers(module: torch.nn.Module) -> list[Writer]:
    if isinstance(module, torch.nn.Embedding):
        return [(module, "weight", -1)]
    return [(module, name, -1) for name in TL_PARAMETERS if name in module._parameters]


def _parameters(writers: list[Writer]) -> list[Tensor]:
    return [getattr(module, name) for module, name, _ in writers]


def _check(root: Any, writers: list[Writer], directions: Tensor, processing: str) -> None:
    d_model = directions.shape[1]
    for (module, name, axis), weight in zip(writers, _parameters(writers), strict=True):
        what = f"{name} {tuple(weight.shape)} of a {type(module).__name__}"
        if name not in module._parameters:
            raise ValueError(
                f"The {what} is computed from others (a parametrization, weight norm, pruning): make it a parameter "
                "first, with torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove."
            )
        if weight.is_meta:
            raise ValueError(f"The {what} is not loaded: load the weights (of an nnsight model by model.dispatch()).")
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ValueError(f"The {what} is quantised ({weight.dtype}): load the model in a float dtype to fold it.")
        if weight.shape[axis] != d_model:
            raise ValueError(f"The directions have {d_model} numbers, but the {what} writes {weight.shape[axis]}.")
    lens = hasattr(root, "run_with_cache") or any(hasattr(part, "_original_component") for part in root.modules())
    rows = _parameters(writers)[0][:256].detach().float().cpu()
    own_processing = processing_seen_in(rows) if lens else "raw"
    if processing != "unknown" and (processing == "centred") != (own_processing == "centred"):
        raise ValueError(
            f"The directions were fitted on {processing} weights, but these are {own_processing}: their streams "
            "differ by the mean of each activation. Fit on this model, or load it with the same processing."
        )


def _replace(root: Any, writers: list[Writer], directions: Tensor, T: float) -> Callable[[], None]:
    """Replace the parameters and keep the old ones. Modules that shared one but do not write keep the old parameter."""
    written = {(id(module), name) for module, name, _ in writers}
    old = {id(weight): weight for weight in _parameters(writers)}
    tied = any(
        id(weight) in old and (id(module), name) not in written
        for module in root.modules()
        for name, weight in module._parameters.items()
    )
    config: Any = getattr(root, "config", None)
    was_tied = getattr(config, "tie_word_embeddings", None)
    replacements: dict[int, torch.nn.Parameter] = {}
    changes = []
    for module, name, axis in writers:
        weight: Any = getattr(module, name)
        if id(weight) not in replacements:
            replacements[id(weight)] = torch.nn.Parameter(
                _projected(weight.detach(), axis, directions, T), weight.requires_grad
            )
        changes.append((module, name, weight, replacements[id(weight)]))
    for module, name, _, new in changes:
        setattr(module, name, new)
    if tied and was_tied:
        config.tie_word_embeddings = False  # else saving would tie them again

    def undo() -> None:
        there = {id(module) for module in root.modules()}
        if any(
            id(module) not in there or getattr(module, name) is not new or new.shape != weight.shape
            for module, name, weight, new in changes
        ):
            raise RuntimeError(
                "These weights were replaced or resized, or this fold was undone already: undo later folds first."
            )
        for module, name, weight, new in changes:
            if (weight.device, weight.dtype) != (new.device, new.dtype):  # the model was moved meanwhile
                weight.data = weight.data.to(new)
            setattr(module, name, weight)
        if tied and was_tied:
            config.tie_word_embeddings = was_tied

    return undo


def _projected(weight: Tensor, axis: int, directions: Tensor, T: float) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    basis = directions.to(weight.device, dtype)
    rows = weight.movedim(axis, -1).to(dtype)
    return (rows - T * (rows @ basis.T) @ basis).movedim(-1, axis).to(weight.dtype).contiguous()


@torch.no_grad()
def _share_along(model: Any, root: Any, blocks: Any, writers: list[Writer], directions: Tensor) -> float:
    """The largest share of an activation's norm along the directions, over the outputs of all blocks."""
    outputs: list[Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        value = out[0] if isinstance(out, (tuple, list)) else out
        outputs.append(value.detach().float())

    handles = [block.register_forward_hook(keep) for block in blocks]
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
    return max(float(((x @ basis.T.to(x.device)).norm(dim=-1) / x.norm(dim=-1).clamp_min(tiny)).max()) for x in outputs)
