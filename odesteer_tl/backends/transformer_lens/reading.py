"""Reading: activations of texts at one site, whatever their lengths and the batch they come in."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from odesteer_tl.activations import ContrastiveActivations, Tokenised, read_tokens
from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.backends.transformer_lens.models import (
    check_layer,
    check_local,
    device_of,
    model_name_of,
    processing_of,
)
from odesteer_tl.backends.transformer_lens.texts import ChatTemplate, Texts, check_context, tokenise, trimmed
from odesteer_tl.shapes import Position, Samples


def collect(
    model: Any,
    desired: Texts,
    undesired: Texts,
    layer: int,
    *,
    position: Position = "last",
    batch_size: int = 16,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    paired: bool = False,
    groups: tuple[Tensor | Sequence[int], Tensor | Sequence[int]] | None = None,
    progress: bool | None = None,
    remote: bool = False,
) -> ContrastiveActivations:
    """The activations of desired and of undesired texts at `blocks.{layer}.hook_resid_post`, float32 on the CPU.

    `desired`, `undesired`: texts, token tensors [batch, pos] without pads, or `Tokenised(tokens, mask)`; a text gives
    the same numbers in any batch. `position`: "last" (real token of each text), "mean", "all", or an index among the
    real tokens. `prepend_bos`, `chat_template`: see `tokenise`; they concern texts only. `paired`: text i of both sides
    answers the same query. `groups`: an id per text and side; texts of one id stay on one side of a split. With
    position "all" each text, or each pair, is a group of its own unless given. Layers after `layer` are not run; hooks
    that the user has on the model act and stay. `progress` None shows a bar when the work lasts; `remote` is for
    nnsight models.

    Raises ValueError for no text, a text without tokens, too long, or too short for the position, undeclared pads, or a
    layer that does not exist.
    """
    kind_of(model)
    check_local(remote)
    check_layer(model, layer)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    left = tokenise(model, desired, prepend_bos=prepend_bos, chat_template=chat_template)
    right = tokenise(model, undesired, prepend_bos=prepend_bos, chat_template=chat_template)
    wanted, wanted_texts = _read(model, left, layer, position, batch_size, progress)
    unwanted, unwanted_texts = _read(model, right, layer, position, batch_size, progress)
    ids = groups
    if ids is None and position == "all":
        ids = torch.arange(len(left.mask)), (0 if paired else len(left.mask)) + torch.arange(len(right.mask))
    if ids is not None:
        if (len(ids[0]), len(ids[1])) != (len(left.mask), len(right.mask)):
            raise ValueError(
                f"groups needs an id per text, {len(left.mask)} desired and {len(right.mask)} undesired; got "
                f"{len(ids[0])} and {len(ids[1])}."
            )
        ids = torch.as_tensor(ids[0])[wanted_texts], torch.as_tensor(ids[1])[unwanted_texts]
    return ContrastiveActivations(
        wanted,
        unwanted,
        layer=layer,
        model_name=model_name_of(model),
        processing=processing_of(model),
        position=position,
        paired=paired,
        groups=ids,
        tokens=(left, right),
    )


def read_site(
    model: Any,
    texts: Texts,
    layer: int,
    *,
    position: Position = "last",
    batch_size: int = 16,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
) -> Samples:
    """The activations of texts at `blocks.{layer}.hook_resid_post`, in their order; one side of `collect`."""
    kind_of(model)
    check_layer(model, layer)
    tokens = tokenise(model, texts, prepend_bos=prepend_bos, chat_template=chat_template)
    return _read(model, tokens, layer, position, batch_size, progress=None)[0]


@torch.no_grad()
def _read(
    model: Any, texts: Tokenised, layer: int, position: Position, batch_size: int, progress: bool | None
) -> tuple[Samples, Int[Tensor, " n"]]:
    """The activations of all texts in their order, and the text that each came from. Texts of like length share a
    batch, so that little is padded."""
    from tqdm.auto import tqdm

    check_context(model, texts)
    name = f"blocks.{layer}.hook_resid_post"
    order = texts.mask.sum(1).argsort(descending=True, stable=True)
    batches = order.split(batch_size)
    samples, sources = [], []
    bar = tqdm(batches, desc=f"Reading layer {layer}", delay=0 if progress else 2, disable=progress is False)
    for batch in bar:
        tokens, mask = trimmed(Tokenised(texts.tokens[batch], texts.mask[batch]))
        on_device = tokens.to(device_of(model)), mask.long().to(device_of(model))
        _, cache = model.run_with_cache(
            on_device[0], attention_mask=on_device[1], names_filter=name, stop_at_layer=layer + 1
        )
        values, rows = read_tokens(cache[name].float().cpu(), mask, position)
        samples.append(values)
        sources.append(batch[rows])
    source = torch.cat(sources)
    back = source.argsort(stable=True)
    return torch.cat(samples)[back], source[back]
