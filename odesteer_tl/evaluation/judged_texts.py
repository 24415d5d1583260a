"""Held-out texts that steering is judged by: which they are, and which of their tokens count.

Any move away from what a model says makes most tokens of given texts less likely, and early tokens more so than late
ones. So both sides are judged by windows that begin after the same number of tokens and are equally long. What a text
shares with a text of the other side, such as a question that both answer, cannot tell them apart and is prompt.
"""

from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.chat_templates import per_side
from odesteer_tl.backends.tokenize import Texts, common_prefix, tokenise, tokenise_answers
from odesteer_tl.evaluation.divergence import Effects, SteeredTexts, Words
from odesteer_tl.evaluation.root_search import first_crossing, near_crossing
from odesteer_tl.evaluation.strength_search import Search

FEWEST, FOLDS = 8, 4
"""The least number of texts a side, and of how many parts one is held out: two texts then."""
JUDGED, LENGTH = 24, 24
"""How many held-out texts a side are steered, and by how many tokens a text is judged at most."""

PerText = Float[Tensor, " texts"]
Rows = tuple[list[Tensor], list[Tensor]]
"""The tokens of every text, per side."""


@dataclass(frozen=True, eq=False)
class JudgedTexts:
    """Held-out texts. `windows`: the tokens of each by which it is judged, per side. `steered`: the first 24 a side,
    the desired ones first, up to the ends of their windows; `n_steered`: how many, per side. `pairs`: whether texts of
    the same number belong together."""

    windows: Rows
    steered: SteeredTexts
    n_steered: tuple[int, int]
    pairs: bool

    @property
    def counts(self) -> tuple[int, int]:
        """How many texts there are, per side."""
        return len(self.windows[0]), len(self.windows[1])

    @property
    def words(self) -> Words:
        """The tokens that the windows hold, each once."""
        return torch.cat([*self.windows[0], *self.windows[1]]).unique()


def held_out(n_desired: int, n_undesired: int, pairs: bool, seed: int, fold: int = 0) -> tuple[Tensor, Tensor]:
    """Which texts of each side are held out in one of four folds: a quarter, and of sides of equally many the same
    numbers, as texts of the same number often belong together. Raises ValueError for fewer than 8 texts a side, and for
    pairs of other numbers."""
    if min(n_desired, n_undesired) < FEWEST:
        raise ValueError(
            f"choose_layer holds out a quarter of the texts and needs at least {FEWEST} a side, got {n_desired} and "
            f"{n_undesired}. Give more, or choose the layer yourself, as in layer=6, position='last'."
        )
    if pairs and n_desired != n_undesired:
        raise ValueError(f"Pairs need as many desired as undesired texts, got {n_desired} and {n_undesired}.")
    generator, masks = torch.Generator().manual_seed(seed), []
    for count in (n_desired, n_undesired):
        mask = torch.zeros(count, dtype=torch.bool, device="cpu")
        quarter = slice(fold * (count // FOLDS), (fold + 1) * (count // FOLDS))
        mask[torch.randperm(count, generator=generator, device="cpu")[quarter]] = True
        masks.append(mask)
    return masks[0], masks[0] if n_desired == n_undesired else masks[1]


def token_rows(
    model: Any, desired: Texts, undesired: Texts, queries: Texts | None, bos: bool | None, chat: Any, system: Any
) -> tuple[Rows, tuple[list[int], list[int]]]:
    """The tokens of every text per side, and how many of each come before what is judged: those of its query; without
    queries, those that it shares with a text of the other side, and at least those that all texts share, such as a
    template's system prompt, and a quarter of a usual text."""
    sides, starts = [], []
    for side, style in zip((desired, undesired), per_side(bos, chat, system), strict=True):
        if queries is None:
            texts, own = tokenise(model, side, **style), None
        else:
            texts, own = tokenise_answers(model, queries, side, **style)
        sides.append([row[mask] for row, mask in zip(*texts, strict=True)])
        starts.append([] if own is None else own.tolist())
    rows = sides[0], sides[1]
    return rows, (_starts(rows) if queries is None else (starts[0], starts[1]))


def judged_texts(
    model: Any,
    rows: Rows,
    starts: tuple[list[int], list[int]],
    held: tuple[Tensor, Tensor],
    pairs: bool,
    blocks: Any = None,
    remote: bool | str = False,
) -> JudgedTexts:
    """The texts that are `held` out. After its start each is judged by as many tokens as the smaller of the two sides'
    medians, and 24 at most. Raises ValueError where a side has no token after its starts."""
    numbers = [torch.nonzero(side).flatten().tolist() for side in held]
    lengths = [
        median_low([len(side[number]) - own[number] for number in picked])
        for side, own, picked in zip(rows, starts, numbers, strict=True)
    ]
    span, windows, texts, prompts = max(min(LENGTH, *lengths), 1), [], [], []
    for side, own, picked in zip(rows, starts, numbers, strict=True):
        windows.append([side[number][own[number] : own[number] + span] for number in picked])
        texts += [side[number][: own[number] + span] for number in picked[:JUDGED]]
        prompts += [own[number] for number in picked[:JUDGED]]
    counts = tuple(min(len(picked), JUDGED) for picked in numbers)
    for side in (windows[0][:JUDGED], windows[1][:JUDGED]):
        if not any(map(len, side)):
            raise ValueError(
                "The held-out texts have no token after their first one, or after what they share, so that nothing "
                "shows what steering does to them: give longer texts, or their beginnings as queries=."
            )
    steered = SteeredTexts.given(model, texts, torch.tensor(prompts, device="cpu"), blocks, remote)
    return JudgedTexts((windows[0], windows[1]), steered, (counts[0], counts[1]), pairs)


def fold_of(
    model: Any,
    rows: Rows,
    starts: tuple[list[int], list[int]],
    pairs: bool,
    seed: int,
    fold: int,
    blocks: Any = None,
    remote: bool | str = False,
) -> tuple[tuple[Tensor, Tensor], JudgedTexts]:
    """Which texts are `held_out` in a fold, and the `judged_texts` of them; both raise ValueError."""
    held = held_out(len(rows[0]), len(rows[1]), pairs, seed, fold)
    return held, judged_texts(model, rows, starts, held, pairs, blocks, remote)


def effects_at(
    texts: SteeredTexts, search: Search, kl: float, guess: float, batch_size: int, words: Words | None = None
) -> tuple[float, Effects] | None:
    """The value of the search that spends `kl` nats on the texts, and what it does there, with the lifts of `words`;
    None where none does. A near `guess` needs few passes."""
    effects: dict[float, Effects] = {}

    def measure(value: float) -> float:
        effects[value] = texts.effects(search.pairs, [value], batch_size, words)
        return float(effects[value].costs.mean())

    value = near_crossing(measure, kl, guess, search.most)
    if value is None:
        crossing = first_crossing(lambda values: [measure(value) for value in values], kl, guess, search.most)
        if not crossing.reached:
            return None
        value = crossing.strength
    return value, effects[value]


def _starts(rows: Rows) -> tuple[list[int], list[int]]:
    """How much of each text is prompt where no queries are given: at least its first token, and not its last."""
    every = sorted((tuple(row.tolist()), side, number) for side in (0, 1) for number, row in enumerate(rows[side]))
    of_all = common_prefix(every[0][0], every[-1][0])
    usual = min(median_low([len(row) for row in side]) for side in rows) - of_all
    least = of_all + min(usual, LENGTH) // 4
    starts = [[max(min(least, len(row) - 1), 1) for row in side] for side in rows]
    for ordered in (every, every[::-1]):  # the longest common prefix is that with a neighbour in the order of texts
        last: list[tuple[int, ...] | None] = [None, None]
        for tokens, side, number in ordered:
            other = last[1 - side]
            if other is not None:
                starts[side][number] = max(starts[side][number], min(common_prefix(tokens, other), len(tokens) - 1))
            last[side] = tokens
    return starts[0], starts[1]
