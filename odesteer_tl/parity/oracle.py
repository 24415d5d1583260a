"""The expected steered logits: those of the plain Hugging Face model, one unpadded row at a time, without a cache.

Torch hooks on decoder layers and on the output projections of attention steer positions that are listed one by one. The
control laws of closed loops are written out here a second time. No code of the backends or of `positions` is used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from odesteer_tl._shapes import TokenIds
from odesteer_tl.control import ALQR, SPID
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.methods import Layers, TruthFlow
from odesteer_tl.parity.models import Family, hugging_face
from odesteer_tl.portable.sites import Site

Place = tuple[int, str, Callable[[Tensor, Tensor], Tensor]]
"""A layer, a site ("resid_post" or "z"), and the function (a, query) → steered a there; the query is the unsteered
activation of the first steered token, which is the prompt's last. At the site "across" the function maps the outputs of
the layer at all steered tokens [n, d_model], and the second argument is the layer's inputs there."""

LAYER, STEPS = 1, 5
PROMPTS = {"single": [[1, 5, 6, 7]], "batch": [[1, 5, 6, 7, 9], [1], [1, 8, 4]]}


def places(method: Any, T: float) -> list[Place]:
    """The places where a method, or each of its parts, steers by T."""
    if isinstance(method, (ALQR, SPID)):
        return _loop(method, T)
    parts = method.parts if isinstance(method, Layers) else (method,)
    sites = [(part.origin.layer, "z" if "attn" in str(part.origin.hook_name) else "resid_post") for part in parts]
    return [(*site, _becomes(part, T)) for site, part in zip(sites, parts, strict=True)]


def _becomes(method: Any, T: float) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(method, TruthFlow):
        return lambda a, query: a + T * method.vector(query)
    return lambda a, query: method.steer(a, T)


def _loop(method: ALQR | SPID, T: float) -> list[Place]:
    """The control law of a closed loop, written out; the errors of the layers are kept until the next pass begins."""
    errors: list[Tensor] = []

    def becomes(number: int) -> Callable[[Tensor, Tensor], Tensor]:
        def add(a: Tensor, z: Tensor) -> Tensor:
            if number == 0:
                errors.clear()
            pairs = list(zip(method.directions[number], method.set_points[number], strict=True))
            gaps = [T * aim - (z * v).sum(-1, keepdim=True) for v, aim in pairs]
            if isinstance(method, ALQR):
                return a + sum(gap * w for gap, w in zip(gaps, method.answers[number], strict=True))
            errors.append(torch.stack([gap * v for gap, (v, _) in zip(gaps, pairs, strict=True)]).sum(0))
            change = errors[-1] - errors[-2] if number else errors[-1]
            return a + method.kp * errors[-1] + method.ki * torch.stack(errors).sum(0) + method.kd * change

        return add

    return [(layer, "across", becomes(number)) for number, layer in enumerate(method.layers)]


@contextmanager
def _replacing(family: Family, layer: int, site: str, change: Callable[..., Tensor]) -> Iterator[None]:
    """Inside the block `change` replaces the value [batch, pos, width] at that site of the Hugging Face model. At the
    site "across" it also gets the input of the layer."""
    hf = hugging_face(family)
    block = (hf.model.layers if family == "llama" else hf.transformer.h)[layer]
    if site == "z":
        projection = block.self_attn.o_proj if family == "llama" else block.attn.c_proj
        handle = projection.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    elif site == "across":
        handle = block.register_forward_hook(
            lambda module, args, out: (
                (change(out[0], args[0]), *out[1:]) if isinstance(out, tuple) else change(out, args[0])
            )
        )
    else:
        handle = block.register_forward_hook(
            lambda module, args, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
        )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits(family: Family, row: list[int], where: Sequence[Place], positions: Sequence[int]) -> Tensor:
    """Logits [pos, d_vocab] of one row, steered at every place of `where` at `positions`."""

    def changing(steer: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def change(before: Tensor, entered: Tensor | None = None) -> Tensor:
            value = before.clone()
            if entered is not None:
                value[0, list(positions)] = steer(before[0, list(positions)], entered[0, list(positions)])
                return value
            for position in positions:
                value[0, position] = steer(before[0, position], before[0, positions[0]])
            return value

        return change

    with ExitStack() as stack:
        for layer, site, steer in where:
            stack.enter_context(_replacing(family, layer, site, changing(steer)))
        return hugging_face(family)(torch.tensor([row], device="cpu"), use_cache=False).logits[0]


def texts(n: int = 60) -> tuple[TokenIds, TokenIds]:
    """Random texts: desired ones of words from the first half of the vocabulary, undesired ones from the second."""
    generator = torch.Generator().manual_seed(0)
    desired, undesired = (torch.randint(low, low + 10, (n, 6), generator=generator, device="cpu") for low in (4, 14))
    return desired, undesired


@cache
@torch.no_grad()
def activations(
    family: Family, layer: int = LAYER, site: Literal["resid_post", "z"] = "resid_post", n: int = 60
) -> ContrastiveActivations:
    """The activations at a site at the last tokens of the desired and the undesired `texts`."""
    sides = []

    def read(value: Tensor) -> Tensor:
        sides.append(value[:, -1].clone())
        return value

    with _replacing(family, layer, site, read):
        for side in texts(n):
            hugging_face(family)(side, use_cache=False)
    return ContrastiveActivations(
        sides[0], sides[1], layer=layer, hook_name=Site(layer, site).hook_name, processing="raw"
    )


def steered_and_plain(
    family: Family, rows: list[list[int]], new: TokenIds, where: list[Place]
) -> list[tuple[Tensor, Tensor]]:
    """For each row the logits [steps, d_vocab] of the steps that generated `new` [batch, steps], steered and unsteered.
    The last prompt token and all later ones are steered."""
    expected = []
    for row, generated in zip(rows, new.tolist(), strict=True):
        whole, last = row + generated[:-1], len(row) - 1
        steered = logits(family, whole, where, range(last, len(whole)))[last:]
        expected.append((steered, logits(family, whole, (), ())[last:]))
    return expected


def differences(logits: Tensor, expected: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The largest deviation of the logits [batch, steps, d_vocab] from the expected steered ones, and the smallest
    effect of steering over the rows."""
    worst, effect = 0.0, float("inf")
    for row, (steered, plain) in zip(logits, expected, strict=True):
        worst = max(worst, (row - steered).abs().nan_to_num(torch.inf).max().item())
        effect = min(effect, (steered - plain).abs().max().item())
    return worst, effect
