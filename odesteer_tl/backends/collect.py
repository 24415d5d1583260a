"""Collect activations of texts at a site of one or several layers, whatever their lengths and their batch."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import Position, Samples
from odesteer_tl.backends.batches import Skip, read_batches, readable, tell_of_sinks
from odesteer_tl.backends.chat_templates import ChatTemplate, Systems, Templates, per_side
from odesteer_tl.backends.checks import check_layer, check_place, check_there, whole_number
from odesteer_tl.backends.model_info import model_name_of, processing_of
from odesteer_tl.backends.tokenize import Texts, answered, tokenise
from odesteer_tl.data.activations import ContrastiveActivations
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
    position: Position = "last",
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
    without pads, or `Tokenised(tokens, mask)`; a text gives the same numbers in any batch. `site`: "resid_post", the
    output of the block; "z", what its attention heads give, side by side [n_heads·d_head]; or "resid_pre"; on
    TransformerLens also "attn_out", "resid_mid" and "mlp_out". What is fitted on it acts there. `position`: "last"
    (real token of each text), "mean", "all", or an index among the real tokens.

    Attention sinks, tokens whose norm is of another size (`sinks.sinks_among` has the rule), are no part of "mean" and
    "all", and a warning says how many and what to type; at "last" and an index it says that one is read.
    `keep_sinks=True` reads them without a word. The BOS, special tokens and those of a template count as tokens of the
    text, as they are steered like others: `skip=n` leaves out the first n of each text (with `queries`, of each
    answer), skip="special" all special ones.

    `prepend_bos`: whether a text begins with the BOS token; None does what the library does: TransformerLens as its
    `cfg.default_prepend_bos` says (usually yes), others as the tokenizer does. Say it where a method fitted on one
    library is to steer the other. `chat_template`: True, a Jinja template, or a function of the text; `system`: a
    system prompt for it to write; each may be a pair, (for desired, for undesired).

    `paired`: text i of both sides answers the same query. `queries`: the queries themselves; `desired` and `undesired`
    are then the answers alone, read after their query and without it, and the activations come paired, with those of
    the queries' last tokens as `acts.queries` (None where the two sides have another template or system prompt, as a
    pair then has two queries); template and system prompt are for the query. `groups`: an id per text and side; texts
    of one id stay on one side of a split. With position "all" each text, or each pair, is a group of its own unless
    given. Layers after `layer` are not run; hooks and edits that the user has on the model act and stay. `progress`
    None shows a bar when the work lasts. `remote` is for nnsight models: True, or the address of a server, as nnsight
    takes it. `blocks`: where an unknown architecture has its decoder blocks, as in blocks="transformer.h", on nnsight
    and Hugging Face models.

    Raises ValueError for no text, a text without tokens, too long, or too short for the position, undeclared pads, or a
    layer or site that does not exist. ConnectionError where a server is not reached or lost, RuntimeError where it
    fails, or sends back what was not asked for: other shapes or types, numbers that are not finite, activations and
    norms that disagree. A server that reads another model, or other tokens, is not noticed.
    """
    return collect_layers(
        model, desired, undesired, [layer], queries=queries, site=site, position=position, batch_size=batch_size,
        skip=skip, keep_sinks=keep_sinks, prepend_bos=prepend_bos, chat_template=chat_template, system=system,
        paired=paired, groups=groups, progress=progress, remote=remote, blocks=blocks,
    )[0]  # fmt: skip


def collect_layers(
    model: Any,
    desired: Texts,
    undesired: Texts,
    layers: Iterable[int],
    *,
    queries: Texts | None = None,
    site: SiteName = "resid_post",
    position: Position = "last",
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
    """What `collect` gives for each of `layers`, in their order, all read in one forward pass per batch.

        acts = ot.collect_layers(model, desired, undesired, range(12), site="z")

    All hold the same texts in the same rows: with position "all", what is a sink at one layer is left out at each. The
    other arguments, and what is raised, as for `collect`; ValueError too for no layers, and for one that comes twice.
    """
    wanted_layers = list(layers)
    sites = _sites(model, wanted_layers, site, remote, blocks)
    batch_size = whole_number("batch_size", batch_size)
    asked, starts, others = [None] * len(sites), None, None
    styles = per_side(prepend_bos, chat_template, system)
    here = {"batch_size": batch_size, "progress": progress, "remote": remote, "blocks": blocks, "sites": sites}
    if queries is None:
        left, right = (tokenise(model, side, **own) for side, own in zip((desired, undesired), styles, strict=True))
    elif position == "all":
        raise ValueError('A pair with a query is one row: position="last", "mean" or an index, not "all".')
    else:
        (left, starts), (right, others) = (
            answered(model, queries, side, **own) for side, own in zip((desired, undesired), styles, strict=True)
        )
        paired = True
        if styles[0] == styles[1]:  # else a pair has two queries
            asked = read_batches(model, tokenise(model, queries, **styles[0]), position="last", **here)[0]
    here |= {"position": position, "keep_sinks": keep_sinks}
    may_be_read = readable(model, left, skip, starts), readable(model, right, skip, others)
    wanted, wanted_texts, met = read_batches(model, left, readable=may_be_read[0], **here)
    unwanted, unwanted_texts, also_met = read_batches(model, right, readable=may_be_read[1], **here)
    if not keep_sinks:
        tell_of_sinks(model, sites, position, [(left, met), (right, also_met)])
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
    name, processing = model_name_of(model), processing_of(model)
    found = {
        each.layer: ContrastiveActivations(
            high, low, layer=each.layer, hook_name=each.hook_name, model_name=name, processing=processing,
            position=position, paired=paired, groups=ids, queries=query, tokens=(left, right),
        )
        for each, high, low, query in zip(sites, wanted, unwanted, asked, strict=True)
    }  # fmt: skip
    return [found[layer] for layer in wanted_layers]


def _sites(model: Any, layers: list[int], name: SiteName, remote: bool | str, blocks: Any) -> list[Site]:
    """The sites in the order of the model. Raises ValueError where one cannot be read there."""
    check_place(model, remote, blocks)
    if not layers:
        raise ValueError("No layers to read: ot.collect_layers(model, desired, undesired, layers=[6, 8]).")
    for layer in layers:
        check_layer(model, layer, blocks)
    if len(set(layers)) < len(layers):
        raise ValueError(f"Each layer is read once, got {layers}.")
    if name not in SITES:
        raise ValueError(f"site is one of {', '.join(SITES)}; got {name!r}.")
    sites = [Site(layer, name) for layer in sorted(layers)]
    check_there(model, sites, blocks)
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
    """The activations of texts at `blocks.{layer}.hook_resid_post`, in their order; one side of `collect`."""
    check_layer(model, layer)
    tokens = tokenise(model, texts, prepend_bos=prepend_bos, chat_template=chat_template)
    found, _, met = read_batches(model, tokens, [Site(layer)], position, batch_size)
    tell_of_sinks(model, [Site(layer)], position, [(tokens, met)])
    return found[0]
