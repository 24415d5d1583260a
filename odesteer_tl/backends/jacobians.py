"""Jacobians of decoder blocks: a block as a function of its last token alone, and its derivatives.

One pass over a prompt records the inputs of a block; afterwards only the block runs. The other positions, masks and
rotary embeddings stay fixed, so this is the Jacobian from the last token to the last token. No hook is left on the
model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from odesteer_tl._progress import bar
from odesteer_tl._shapes import AnyTokens, TokenIds
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.model_info import device_of, load_weights, modules_of
from odesteer_tl.portable.decoder_blocks import entering, inputs_with, value_in

Rows = Float[Tensor, "rows d_model"]


class BlockMap:
    """φ: the output of a block at the last token [rows, d_model], as a function of its input at the last token.

    `at` [d_model] is the recorded input. Rows are independent.
    """

    def __init__(self, block: Any, inputs: Any) -> None:
        self._block = block
        self._args, self._kwargs = _without_cache(inputs[0]), _without_cache(inputs[1])
        self._entering = entering(inputs).detach()
        self.at = self._entering[0, -1]

    def __call__(self, last: Rows) -> Rows:
        rows = len(last)
        earlier = self._entering[:, :-1].expand(rows, -1, -1)
        value = torch.cat([earlier, last.unsqueeze(1)], dim=1)
        args, kwargs = inputs_with(_repeated((self._args, self._kwargs), rows), value)
        return value_in(self._block(*args, **kwargs))[:, -1]

    def vjp(self, u: Rows) -> Rows:
        """Jᵀu of each row u [rows, d_model], by reverse mode."""
        with torch.inference_mode(False), torch.enable_grad():
            last = self.at.clone().expand(len(u), -1).clone().requires_grad_()
            return torch.autograd.grad(self(last), last, u.to(last))[0]

    def jvp(self, p: Rows) -> Rows:
        """J p of each row p [rows, d_model], by forward mode. Fused attention does not support forward mode, so plain
        attention is used."""
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            last = self.at.clone().expand(len(p), -1).clone()
            tangent = forward_ad.unpack_dual(self(forward_ad.make_dual(last, p.to(last)))).tangent
        return torch.zeros_like(last) if tangent is None else tangent


@torch.no_grad()
def block_maps(model: Any, prompt: TokenIds, layers: list[int], blocks: Any = None) -> list[BlockMap]:
    """The blocks at `layers` with the inputs that they have for `prompt` [1, pos], recorded in one pass.

    Raises ValueError for more than one row, and for blocks whose inputs cannot be read.
    """
    if prompt.shape[0] != 1:
        raise ValueError(f"Blocks are linearised at one prompt at a time: give [1, pos], got {tuple(prompt.shape)}.")
    load_weights(model)
    block_list = modules_of(model, blocks)
    chosen = [block_list[layer] for layer in layers]
    inputs: dict[int, Any] = {}

    def hook_of(number: int) -> Callable[..., None]:
        def watch(module: Any, args: Any, kwargs: Any) -> None:
            inputs[number] = args, kwargs

        return watch

    handles = []
    try:
        with torch.inference_mode(False):  # the recorded inputs are differentiated later
            tokens = prompt.clone().to(device_of(model))  # the prompt may have been made in inference mode
            for number, block in enumerate(chosen):
                handles.append(block.register_forward_pre_hook(hook_of(number), with_kwargs=True))
            backend_of(model).forward(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return [BlockMap(block, inputs[number]) for number, block in enumerate(chosen)]


def mean_jacobians(
    model: Any,
    prompts: list[AnyTokens],
    layers: list[int],
    chunk: int = 64,
    blocks: Any = None,
    progress: bool | None = None,
) -> Iterator[Float[Tensor, "d_model d_model"]]:
    """Yields the exact mean Jacobian over `prompts` [1, pos] for each of `layers`, in their order.

    Entry (i, j) is the derivative of output i by input j. It is summed in float32 (float64 for a float64 model) on the
    model's device, `chunk` rows at a time. Memory holds one matrix and the activations of one prompt: each prompt is
    run again for each layer. That costs one pass, while a Jacobian costs about 3·d_model rows of one block.
    """
    steps = len(layers) * len(prompts)
    with bar(label="Jacobians", total=steps, progress=progress) as progress_bar:
        for layer in layers:
            total: Tensor | None = None
            for prompt in prompts:
                (block,) = block_maps(model, prompt, [layer], blocks)
                d_model, device = len(block.at), block.at.device
                if total is None:
                    dtype = torch.promote_types(block.at.dtype, torch.float32)
                    total = torch.zeros(d_model, d_model, dtype=dtype, device=device)
                for rows in torch.arange(d_model, device=device).split(chunk):
                    unit = torch.zeros(len(rows), d_model, dtype=block.at.dtype, device=device)
                    unit[torch.arange(len(rows), device=device), rows] = 1
                    total[rows] += block.vjp(unit).to(total)
                progress_bar.update()
            assert total is not None
            yield total.div_(len(prompts))


class Linearised:
    """The mean Jacobians A of several layers as matrix-vector products; no matrix is formed. The block inputs of all
    prompts are kept."""

    def __init__(self, model: Any, prompts: list[AnyTokens], layers: list[int], chunk: int = 64, blocks: Any = None):
        maps_by_prompt = [block_maps(model, prompt, layers, blocks) for prompt in prompts]
        self._maps = list(zip(*maps_by_prompt, strict=True))
        self._chunk = chunk
        self.device = maps_by_prompt[0][0].at.device

    def jvp(self, number: int, p: Rows) -> Rows:
        """A p of each row p [rows, d_model] for `layers[number]`, in the dtype of `p`."""
        return self._mean(number, p, BlockMap.jvp)

    def vjp(self, number: int, u: Rows) -> Rows:
        """Aᵀu of each row u [rows, d_model] for `layers[number]`, in the dtype of `u`."""
        return self._mean(number, u, BlockMap.vjp)

    def _mean(self, number: int, rows: Rows, product: Callable[[BlockMap, Rows], Rows]) -> Rows:
        maps = self._maps[number]
        total = torch.zeros_like(rows)
        for block_map in maps:
            for chunk, total_chunk in zip(rows.split(self._chunk), total.split(self._chunk), strict=True):
                total_chunk += product(block_map, chunk).to(rows)
        return total / len(maps)


def _without_cache(argument: Any) -> Any:
    """The arguments of a block without its cache, which would grow with every call."""
    if isinstance(argument, dict):
        return {k: False if k == "use_cache" else _without_cache(value) for k, value in argument.items()}
    if isinstance(argument, tuple):
        return tuple(_without_cache(value) for value in argument)
    return None if hasattr(argument, "get_seq_length") or hasattr(argument, "past_keys") else argument


def _repeated(argument: Any, rows: int) -> Any:
    """The arguments of one row, expanded to a batch of `rows` rows. Tensors with one axis are shared by all rows."""
    if isinstance(argument, dict):
        return {name: _repeated(value, rows) for name, value in argument.items()}
    if type(argument) is tuple:
        return tuple(_repeated(value, rows) for value in argument)
    if isinstance(argument, Tensor) and argument.ndim > 1 and argument.shape[0] == 1:
        return argument.expand(rows, *argument.shape[1:])
    return argument
