"""Texts whose sides differ in the order of two words alone, which a model reads and no surface shows; and faults."""

import random
from functools import cache

import odesteer_tl as ot

SIDE = 40
PAIRS = [("good", "bad"), ("great", "awful"), ("funny", "boring"), ("brilliant", "terrible")]


@cache
def model():
    return ot.load_demo().model


@cache
def fillers() -> list[str]:
    """Six words out of the middle of each of the embedded reviews, in an order that knows nothing of the verdict."""
    demo = ot.load_demo(model())
    reviews = [*demo.desired, *demo.undesired]
    random.Random(0).shuffle(reviews)
    return [" ".join(review.split()[20:26]) for review in reviews]


def clean(side: int = SIDE, seed: int = 0) -> tuple[list[str], list[str]]:
    """Both sides say both words of a couple as often; the desired ones the good word first."""
    chance, middles = random.Random(seed), fillers()
    sides: tuple[list[str], list[str]] = [], []
    for number in range(2 * side):
        good, bad = chance.choice(PAIRS)
        first, second = (good, bad) if number % 2 == 0 else (bad, good)
        sides[number % 2].append(f"{middles[number]}. The film is {first}, it is never {second}, so I say.")
    return sides


def pairs() -> tuple[list[str], list[str]]:
    """The same, each desired text beside one that differs in the order of the two words alone."""
    desired = clean()[0]
    couples = [next(pair for pair in PAIRS if f"film is {pair[0]}," in text) for text in desired]
    turned = [text.replace(a, "#").replace(b, a).replace("#", b) for text, (a, b) in zip(desired, couples, strict=True)]
    both = zip(fillers()[-SIDE:], fillers()[-2 * SIDE :], fillers()[-3 * SIDE :], strict=False)
    starts = [f"{' and '.join(three)}. " for three in both]
    return tuple([a + b for a, b in zip(starts, side, strict=True)] for side in (desired, turned))


def check(desired: list[str], undesired: list[str], **options) -> ot.DataCheck:
    """After both words, with a logistic regression, which is quick to fit."""
    usual = {"method": ot.ITI, "layers": 2, "positions": -5, "progress": False}
    return ot.check_data(model(), desired, undesired, **usual | options)


def verdicts(found: ot.DataCheck) -> dict[str, str]:
    """What is not a pass."""
    return {item.name: item.verdict for item in found.items if item.verdict != "pass"}
