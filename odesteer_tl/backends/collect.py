"""Collect activations of texts at a site of one or several layers; the result does not depend on batching or
padding."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import Position, Samples
from odesteer_tl.backends.batches import Skip, both_sides, read_batches, readable, report_sinks
from odesteer_tl.backends.chat_templates import ChatTemplate, Systems, Templates, per_side
from odesteer_tl.backends.checks import check_groups, check_layer, check_place, check_sites, whole_number
from odesteer_tl.backends.model_info import model_name_of, processing_of
from odesteer_tl.backends.tokenize import Texts, tokenise, tokenise_answers
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.token_weights import TokenWeights, by_name, given_weights
from odesteer_tl.data.tokens import SiteTokens, check_paired, reads_several
from odesteer_tl.portable.sites import SITES, Site, SiteName

Groups = tuple[Tensor | Sequence[int], Tensor | Sequence[int]]
"""An id per desired and per undesired text."""


def collect(
    model: Any,
    desired: Texts,
    undesired: Texts,
    layer: int,
    *,
    queries: Texts | None = None,
    site: SiteName = "resid_post",
    position: Position | TokenWeights = "last",
    batch_size: int = 16,
    skip: Skip = 0,
    keep_sinks: bool = False,
    prepend_bos: bool | None = None,
    chat_template: Templates = False,
    system: Systems = None,
    paired: bool = False,
    groups: Groups | None = None,
    progress: bool | None = None,
    remote: bool | str = False,
    blocks: Any = None,
) -> ContrastiveActivations:
    """The activations of desired and of undesired texts at a site of a layer, float32 on the CPU.

    `desired`, `undesired`: texts, chats (lists of messages with a role and a content), token tensors [batch, pos]
    without pads, or `Tokenised(tokens, mask)`. A text gives the same activations in any batch. `site`: "resid_post",
    the output of the block; "z", the outputs of its attention heads side by side [n_heads·d_head]; or "resid_pre"; on
    TransformerLens also "attn_out", "resid_mid" and "mlp_out". A method fitted on the result acts at this site.
    `position`: "last" (the last real token of each text), "mean", "all", an index among the real tokens, or
    "random:3": three tokens of each text, drawn by its length alone, without the sinks among them; not of pairs; or
    `ot.TokenWeights`, a mean weighted by numbers of your own.

    Attention sinks are tokens with a much larger norm than the others (see `attention_sinks.sinks_among`). "mean",
    "all", "random:3" and weights leave them out, and a warning says how many and what to type; "last" and an index read
    them, with a warning. `keep_sinks=True` reads them without a warning. The BOS, special tokens and those of a
    template count as tokens of the text, because they are steered like others. `skip=n` leaves out the first n of each
    text (with `queries`, of each answer), skip="special" all special tokens.

    `prepend_bos`: whether a text begins with the BOS token. None follows the library: TransformerLens uses
    `cfg.default_prepend_bos` (usually True), the others follow the tokenizer. Give it if a method is fitted in one
    library and steers in another. `chat_template`: True, a Jinja template, or a function of the text. `system`: a
    system prompt for the template. Both may be a pair, (for desired, for undesired).

    `paired`: text i of both sides answers the same query. `queries`: the queries themselves. `desired` and `undesired`
    are then only the answers: they are run after their query, and only their tokens are read. The activations are
    paired, and those of the queries' last tokens are in `acts.queries` (None if the two sides have different templates
    or system prompts, because a pair then has two queries). Template and system prompt apply to the query. `groups`: an
    id per text and side; texts with the same id stay together in a split. With position "all" or "random:3", each text
    or pair is a group by default. Layers after `layer` are not run. The user's own hooks and edits on the model act,
    and stay. `progress` None shows a bar if the work takes long. `remote`, for nnsight models: True, or the address of
    a server. `blocks`, for nnsight and Hugging Face models: the path of the decoder blocks of an unknown architecture,
    as in blocks="transformer.h".

    Raises ValueError for no text, a text without tokens, too long, or too short for the position, for undeclared pads,
    and for a layer or site that does not exist. ConnectionError if a server is not reached or the connection is lost.
    RuntimeError if the server fails, or sends back something else than was asked for: other shapes or types, numbers
    that are not finite, activations and norms that disagree. A server that reads another model, or other tokens, is not
    noticed.
    """
    return collect_places(
        model, desired, undesired, [layer], [position], queries=queries, site=site, batch_size=batch_size, skip=skip,
        keep_sinks=keep_sinks, prepend_bos=prepend_bos, chat_template=chat_template, system=system, paired=paired,
        groups=groups, progress=progress, remote=remote, blocks=blocks,
    )[0][0]  # fmt: skip


def collect_layers(
    model: Any,
    desired: Texts,
    undesired: Texts,
    layers: Iterable[int],
    *,
    queries: Texts | None = None,
    site: SiteName = "resid_post",
    position: Position | TokenWeights = "last",
    batch_size: int = 16,
    skip: Skip = 0,
    keep_sinks: bool = False,
    prepend_bos: bool | None = None,
    chat_template: Templates = False,
    system: Systems = None,
    paired: bool = False,
    groups: Groups | None = None,
    progress: bool | None = None,
    remote: bool | str = False,
    blocks: Any = None,
) -> list[ContrastiveActivations]:
    """The result of `collect` for each of `layers`, in their order, read in one forward pass per batch.

        acts = ot.collect_layers(model, desired, undesired, range(12), site="z")

    All results hold the same texts in the same rows: with position "all" or "random:3", a token that is a sink at one
    layer is left out at all. The other arguments and errors are those of `collect`. Also raises ValueError for no
    layers, and for a layer given twice.
    """
    return collect_places(
        model, desired, undesired, layers, [position], queries=queries, site=site, batch_size=batch_size, skip=skip,
        keep_sinks=keep_sinks, prepend_bos=prepend_bos, chat_template=chat_template, system=system, paired=paired,
        groups=groups, progress=progress, remote=remote, blocks=blocks,
    )[0]  # fmt: skip


def collect_places(
    model: Any,
    desired: Texts,
    undesired: Texts,
    layers: Iterable[int],
    positions: Sequence[Position | TokenWeights],
    *,
    queries: Texts | None,
    prepend_bos: bool | None,
    chat_template: Templates,
    system: Systems,
    paired: bool,
    batch_size: int,
    progress: bool | None,
    blocks: Any,
    site: SiteName = "resid_post",
    skip: Skip = 0,
    keep_sinks: bool = False,
    groups: Groups | None = None,
    remote: bool | str = False,
    hear: Callable[[Position, list[SiteTokens]], None] | None = None,
) -> list[list[ContrastiveActivations]]:
    """The result of `collect_layers` for each of `positions`, from the same forward passes. `hear` is told, for each
    position, the tokens of both sides at each layer in ascending order; then no warning is raised of the sinks."""
    wanted_layers = list(layers)
    sites = _sites(model, wanted_layers, site, remote, blocks)
    batch_size = whole_number("batch_size", batch_size)
    query_activations, left_starts, right_starts = [None] * len(sites), None, None
    styles = per_side(prepend_bos, chat_template, system)
    shared = {"batch_size": batch_size, "progress": progress, "remote": remote, "blocks": blocks, "sites": sites}
    weights = list(map(given_weights, positions))
    names = list(map(by_name, positions))
    for position in names if paired else ():
        check_paired(position)
    if queries is None:
        left, right = (tokenise(model, side, **style) for side, style in zip((desired, undesired), styles, strict=True))
    elif any(map(reads_several, names)):
        raise ValueError(
            'With queries= a pair is one row: give position="last", "mean" or an index, not "all" and not "random:3".'
        )
    else:
        (left, left_starts), (right, right_starts) = (
            tokenise_answers(model, queries, side, **style)
            for side, style in zip((desired, undesired), styles, strict=True)
        )
        paired = True
        if styles[0] == styles[1]:  # otherwise a pair has two different queries
            asked = tokenise(model, queries, **styles[0])
            query_activations = read_batches(model, asked, positions=["last"], **shared)[0][0]
    shared |= {"positions": names, "keep_sinks": keep_sinks}
    readable_tokens = readable(model, left, skip, left_starts), readable(model, right, skip, right_starts)
    left_readings = read_batches(model, left, readable=readable_tokens[0], **shared)
    right_readings = read_batches(model, right, readable=readable_tokens[1], **shared)
    name, processing = model_name_of(model), processing_of(model)
    places = []
    for position, own, left_read, right_read in zip(names, weights, left_readings, right_readings, strict=True):
        if own is not None:
            left_read = own.mean(left_read, "desired", left.mask, readable_tokens[0], keep_sinks)
            right_read = own.mean(right_read, "undesired", right.mask, readable_tokens[1], keep_sinks)
        (left_samples, left_texts, left_met), (right_samples, right_texts, right_met) = left_read, right_read
        if hear is not None:
            hear(position, both_sides([left_met, right_met]))
        elif not keep_sinks:
            report_sinks(model, sites, position, [(left, left_met), (right, right_met)])
        ids = groups
        if ids is None and reads_several(position):
            first, second = (torch.arange(len(side.mask), device="cpu") for side in (left, right))
            ids = first, second if paired else second + len(first)
        if ids is not None:
            check_groups(ids, (len(left.mask), len(right.mask)))
            ids = torch.as_tensor(ids[0], device="cpu")[left_texts], torch.as_tensor(ids[1], device="cpu")[right_texts]
        by_layer = {
            site_read.layer: ContrastiveActivations(
                high, low, layer=site_read.layer, hook_name=site_read.hook_name, model_name=name,
                processing=processing, position=position, paired=paired, groups=ids, queries=query,
                tokens=(left, right),
            )
            for site_read, high, low, query in zip(sites, left_samples, right_samples, query_activations, strict=True)
        }  # fmt: skip
        places.append([by_layer[layer] for layer in wanted_layers])
    return places


def _sites(model: Any, layers: list[int], name: SiteName, remote: bool | str, blocks: Any) -> list[Site]:
    """The sites in the order of the model. Raises ValueError for a site that cannot be read, and for wrong layers."""
    check_place(model, remote, blocks)
    if not layers:
        raise ValueError("No layers were given: type ot.collect_layers(model, desired, undesired, layers=[6, 8]).")
    for layer in layers:
        check_layer(model, layer, blocks)
    if len(set(layers)) < len(layers):
        raise ValueError(f"A layer may be given once only, got {layers}.")
    if name not in SITES:
        raise ValueError(f"site is one of {', '.join(SITES)}; got {name!r}.")
    sites = [Site(layer, name) for layer in sorted(layers)]
    check_sites(model, sites, blocks)
    return sites


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
    """The activations of texts at `blocks.{layer}.hook_resid_post`, in the order of `texts`; like one side of
    `collect`."""
    check_layer(model, layer)
    tokens = tokenise(model, texts, prepend_bos=prepend_bos, chat_template=chat_template)
    ((samples, _, met),) = read_batches(model, tokens, [Site(layer)], [position], batch_size)
    report_sinks(model, [Site(layer)], position, [(tokens, met)])
    return samples[0]
