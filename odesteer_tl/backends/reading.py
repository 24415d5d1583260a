"""Reading: activations of texts at one site, whatever their lengths and the batch they come in."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from odesteer_tl.activations import ContrastiveActivations, Tokenised
from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.backends.models import check_layer, check_place, model_name_of, processing_of
from odesteer_tl.backends.texts import ChatTemplate, Texts, check_context, tokenise, trimmed
from odesteer_tl.backends.transformer_lens.running import activations_of as read_cache
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
    remote: bool | str = False,
    blocks: Any = None,
) -> ContrastiveActivations:
    """The activations of desired and of undesired texts at `blocks.{layer}.hook_resid_post`, float32 on the CPU.

    `desired`, `undesired`: texts, token tensors [batch, pos] without pads, or `Tokenised(tokens, mask)`; a text gives
    the same numbers in any batch. `position`: "last" (real token of each text), "mean", "all", or an index among the
    real tokens. `prepend_bos`: whether a text begins with the BOS token; None does what the library does:
    TransformerLens as its `cfg.default_prepend_bos` says (usually yes), nnsight as the tokenizer does. Say it where a
    method fitted on one library is to steer the other. `chat_template`: True, a Jinja template, or a function of the
    text. `paired`: text i of both sides answers the same query. `groups`: an id per text and side; texts of one id stay
    on one side of a split. With position "all" each text, or each pair, is a group of its own unless given. Layers
    after `layer` are not run; hooks and edits that the user has on the model act and stay. `progress` None shows a bar
    when the work lasts. `remote` and `blocks` are for nnsight models: True, or the address of a server, as nnsight
    takes it; and where an unknown architecture has its decoder blocks, as in blocks="transformer.h".

    Raises ValueError for no text, a text without tokens, too long, or too short for the position, undeclared pads, or a
    layer that does not exist. ConnectionError where a server is not reached or lost, RuntimeError where it fails.
    """
    check_place(model, remote, blocks)
    check_layer(model, layer, blocks)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    left = tokenise(model, desired, prepend_bos=prepend_bos, chat_template=chat_template)
    right = tokenise(model, undesired, prepend_bos=prepend_bos, chat_template=chat_template)
    wanted, wanted_texts = _read(model, left, layer, position, batch_size, progress, remote, blocks)
    unwanted, unwanted_texts = _read(model, right, layer, position, batch_size, progress, remote, blocks)
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
    check_layer(model, layer)
    tokens = tokenise(model, texts, prepend_bos=prepend_bos, chat_template=chat_template)
    return _read(model, tokens, layer, position, batch_size)[0]


@torch.no_grad()
def _read(
    model: Any,
    texts: Tokenised,
    layer: int,
    position: Position,
    batch_size: int,
    progress: bool | None = None,
    remote: bool | str = False,
    blocks: Any = None,
) -> tuple[Samples, Int[Tensor, " n"]]:
    """The activations of all texts in their order, and the text that each came from. Texts of like length share a
    batch, so that little is padded."""
    from tqdm.auto import tqdm

    check_context(model, texts)
    order = texts.mask.sum(1).argsort(descending=True, stable=True)
    samples, sources = [], []
    bar = tqdm(
        order.split(batch_size), desc=f"Reading layer {layer}", delay=0 if progress else 2, disable=progress is False
    )
    for chosen in bar:
        batch = trimmed(Tokenised(texts.tokens[chosen], texts.mask[chosen]))
        values, rows = _activations(model, batch, layer, position, remote, blocks)
        samples.append(values)
        sources.append(chosen[rows])
    source = torch.cat(sources)
    back = source.argsort(stable=True)
    return torch.cat(samples)[back], source[back]


def _activations(
    model: Any, batch: Tokenised, layer: int, position: Position, remote: bool | str, blocks: Any
) -> tuple[Samples, Int[Tensor, " n"]]:
    if kind_of(model) == "nnsight":
        from odesteer_tl.backends.nnsight.running import activations_of

        return activations_of(model, batch, layer, position, remote, blocks)
    return read_cache(model, batch, layer, position)
