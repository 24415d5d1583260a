"""Held-out texts that steering is judged by: which they are, and which of their tokens count.

Any move away from what a model says makes most tokens of given texts less likely, and early tokens more so than late
ones. So both sides are judged by windows that begin at the same place and are equally long.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.chat_templates import per_side
from odesteer_tl.backends.tokenize import Texts, tokenise, tokenise_answers
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.root_search import first_crossing, near_crossing
from odesteer_tl.evaluation.strength_search import Search

FEWEST = 8
"""The least number of texts a side: two of them are held out then."""
JUDGED, LENGTH = 24, 32
"""How many held-out texts a side are judged, and by how many tokens at most."""

PerText = Float[Tensor, " texts"]
Rows = tuple[list[Tensor], list[Tensor]]
"""The tokens of every text, per side."""


def held_out(n_desired: int, n_undesired: int, pairs: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Which texts of each side are held out: a quarter, the same numbers of both sides where they are pairs. Raises
    ValueError for fewer than 8 texts a side, and for pairs of other numbers."""
    if min(n_desired, n_undesired) < FEWEST:
        raise ValueError(
            f"choose_layer holds out a quarter of the texts and needs at least {FEWEST} a side, got {n_desired} and "
            f"{n_undesired}. Give more, or choose the layer yourself, as in layer=6."
        )
    if pairs and n_desired != n_undesired:
        raise ValueError(f"Pairs need as many desired as undesired texts, got {n_desired} and {n_undesired}.")
    generator, masks = torch.Generator().manual_seed(seed), []
    for count in (n_desired, n_undesired):
        mask = torch.zeros(count, dtype=torch.bool, device="cpu")
        mask[torch.randperm(count, generator=generator, device="cpu")[: count // 4]] = True
        masks.append(mask)
    return masks[0], masks[0] if pairs else masks[1]


def token_rows(
    model: Any, desired: Texts, undesired: Texts, queries: Texts | None, bos: bool | None, chat: Any, system: Any
) -> tuple[Rows, tuple[list[int], list[int]]]:
    """The tokens of every text per side, and how many of each come before what is judged: those of its query, or those
    that all texts share, such as a template's system prompt."""
    sides, starts = [], []
    for side, style in zip((desired, undesired), per_side(bos, chat, system), strict=True):
        if queries is None:
            texts, own = tokenise(model, side, **style), None
        else:
            texts, own = tokenise_answers(model, queries, side, **style)
        sides.append([row[mask] for row, mask in zip(*texts, strict=True)])
        starts.append([] if own is None else own.tolist())
    if queries is None:
        shared = _shared([*sides[0], *sides[1]])
        starts = [[shared] * len(side) for side in sides]
    return (sides[0], sides[1]), (starts[0], starts[1])


def judged_texts(
    model: Any,
    rows: Rows,
    starts: tuple[list[int], list[int]],
    numbers: tuple[list[int], list[int]],
    given: bool,
    blocks: Any = None,
) -> SteeredTexts:
    """The texts of these numbers, the desired ones first: after its start each is as long as the smaller of the two
    sides' medians, and 32 tokens at most. Where no queries are `given` the first quarter of that is prompt.

    Raises ValueError where a side has no token after its starts.
    """
    chosen, lengths = [], []
    for side, own, picked in zip(rows, starts, numbers, strict=True):
        chosen += [(side[number], own[number]) for number in picked]
        lengths.append(int(torch.tensor([len(side[number]) - own[number] for number in picked], device="cpu").median()))
    span = min(LENGTH, *lengths)
    before = 0 if given else span // 4
    prompts = [max(start + before, 1) for _, start in chosen]
    texts = [row[: max(start + span, prompt)] for (row, start), prompt in zip(chosen, prompts, strict=True)]
    first = len(numbers[0])
    for part in (slice(first), slice(first, None)):
        if not any(len(text) > prompt for text, prompt in zip(texts[part], prompts[part], strict=True)):
            raise ValueError(
                "The held-out texts have no token after their first one, or after what they all share, so that nothing "
                "shows what steering does to them: give longer texts, or their beginnings as queries=."
            )
    return SteeredTexts.given(model, texts, torch.tensor(prompts, device="cpu"), blocks)


def _shared(rows: list[Tensor]) -> int:
    """How many tokens all rows have in common at their beginning; at least one of each is left over."""
    most = min(map(len, rows)) - 1
    same = [all(int(row[column]) == int(rows[0][column]) for row in rows) for column in range(most)]
    return same.index(False) if False in same else most


def gains_at(
    texts: SteeredTexts, search: Search, kl: float, guess: float, batch_size: int
) -> tuple[float, PerText] | None:
    """The value of the search that spends `kl` nats on the texts, and how much likelier each becomes there, in nats;
    None where none does. A near `guess` needs few passes."""
    gains: dict[float, PerText] = {}

    def measure(value: float) -> float:
        costs, gained = texts.costs_and_gains(search.pairs, [value], batch_size)
        gains[value] = gained[0]
        return float(costs.mean())

    value = near_crossing(measure, kl, guess, search.most)
    if value is None:
        crossing = first_crossing(lambda values: [measure(value) for value in values], kl, guess, search.most)
        if not crossing.reached:
            return None
        value = crossing.strength
    return value, gains[value]
