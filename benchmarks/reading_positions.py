"""Reading positions that `collect` takes and those that need more than a name, for plain models of transformers."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

import odesteer_tl as ot
from odesteer_tl.data.activations import ContrastiveActivations

POSITIONS = {
    "last": "the last token",
    "mean": "the mean over the tokens, without sinks",
    "random:3": "three tokens, a row each, of query and answer",
    "attention": "the mean by what the last token attends to in the next block, all heads alike, without sinks",
    "answer": "the mean over the answer, where texts are a question and an answer",
    "instruction": "the last token of a chat template around the text, from which a reply would begin",
}
ANSWER = "\nA:"


def read(
    model: Any,
    sides: tuple[list[str], list[str]],
    layers: Sequence[int],
    position: str,
    queries: list[str] | None = None,
) -> list[ContrastiveActivations]:
    """The activations at each layer; none where the texts have no such position. `queries`: what the texts answer."""
    if position in ("last", "mean"):
        return ot.collect_layers(model, *sides, layers, position=position, queries=queries)
    if queries is not None:  # the other positions are read in query and answer as one text
        joined = [[query + text for query, text in zip(queries, side, strict=True)] for side in sides]
        sides = joined[0], joined[1]
    if position == "random:3":
        return ot.collect_layers(model, *sides, layers, position=position)
    if position == "attention":
        texts = ot.collect(model, *sides, layers[0]).tokens
        assert texts is not None
        high, low = (_attention(model, side, layers) for side in texts)
        weights = {layer: ot.TokenWeights(high[layer], low[layer], position) for layer in layers}
        return [ot.collect(model, *sides, layer, position=own) for layer, own in weights.items()]
    if position == "instruction":
        return ot.collect_layers(model, *sides, layers, chat_template=True)
    if queries is not None or not all(ANSWER in text for side in sides for text in side):
        return []  # the mean is over the answers already
    cut = [[text.partition(ANSWER) for text in side] for side in sides]
    asked = [query + mark for query, mark, _ in cut[0]]
    good, bad = ([answer for _, _, answer in side] for side in cut)
    return ot.collect_layers(model, good, bad, layers, queries=asked, position="mean")


@torch.no_grad()
def _attention(model: Any, texts: ot.Tokenised, layers: Sequence[int]) -> dict[int, list[torch.Tensor]]:
    """For each layer what the last token of each text attends to in the block that reads it: the mean of its heads."""
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    before = model.config._attn_implementation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_attn_implementation("eager")  # the only one that gives its weights
        for tokens, mask in zip(texts.tokens, texts.mask, strict=True):
            seen = model(tokens[mask][None], output_attentions=True, use_cache=False).attentions
            for layer in layers:
                found[layer].append(seen[min(layer + 1, len(seen) - 1)][0, :, -1].float().mean(0))
        model.set_attn_implementation(before)
    return found
