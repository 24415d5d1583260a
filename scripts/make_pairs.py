"""Make `pairs.json`: minimal contrasts from a small grammar, the same bytes for the same seed.

    python scripts/make_pairs.py --out FILE [--count 200] [--seed 0]

A pair is a query and two answers to be appended to it as they are (they begin with a space). The answers have one
syntax; their words differ slot by slot, so that what differs between the two sides is the verdict and little else.
Queries break off at many kinds of words, as prompts do: a method that learns from the query's last token sees more than
"was".
"""

import argparse
import itertools
import json
import random
from pathlib import Path

WORKS = ("movie", "film", "picture", "comedy", "thriller", "sequel", "drama")
PARTS = ("acting", "story", "ending", "music", "dialogue", "photography", "direction", "script", "casting")
PEOPLE = (
    "My wife",
    "My brother",
    "Everyone in the room",
    "The man beside me",
    "My best friend",
    "My daughter",
    "Our neighbour",
)
TIMES = ("last night", "yesterday", "on television", "with our friends", "in the cinema", "on the plane", "at school")
STARTS = ("In the end", "To be honest", "After half an hour", "Compared with the book", "For a rainy evening")
PLACES = ("in a shop", "on television", "at a friend's house", "on the shelf")

VERDICTS = (
    ("wonderful", "terrible"),
    ("excellent", "awful"),
    ("great", "bad"),
    ("brilliant", "horrible"),
    ("superb", "dreadful"),
    ("fresh", "boring"),
    ("clever", "stupid"),
    ("perfect", "pathetic"),
)
TAILS = (
    ("and I enjoyed every minute of it", "and I hated every minute of it"),
    ("and it kept getting better to the end", "and it kept getting worse to the end"),
    ("and I would gladly watch it again", "and I would never watch it again"),
    ("and it was the best part of the evening", "and it was the worst part of the evening"),
    ("and for once my money was well spent", "and once again my money was wasted"),
)
MOODS = (("happy", "angry"), ("pleased", "cheated"), ("moved", "bored"), ("delighted", "disappointed"))
ADVICE = (
    ("see it as soon as you can", "skip it if you possibly can"),
    ("buy it, because it is a gem", "avoid it, because it is a mess"),
    ("rent it, you will love it", "leave it, you will hate it"),
    ("give it a chance, it is worth it", "give it a miss, it is not worth it"),
)

Contrast = tuple[str, str]


def both(template: str, *slots: Contrast) -> Contrast:
    """Fill a template's slots with the desired words, and with the undesired ones."""
    return template.format(*(slot[0] for slot in slots)), template.format(*(slot[1] for slot in slots))


def lower(text: str) -> str:
    """The same in the middle of a sentence."""
    return text[0].lower() + text[1:]


def crossed(template: str, *slots: tuple[str, ...]) -> list[str]:
    """A query for every way to fill the slots of a template."""
    return [template.format(*words) for words in itertools.product(*slots)]


def shapes() -> list[tuple[list[str], list[Contrast]]]:
    """The sentence shapes: all queries of a shape, and all contrasts that complete any of them."""
    verdicts = [both(" {}, {}.", v, t) for v, t in itertools.product(VERDICTS, TAILS)]
    moods = [both(" {}, {}.", m, t) for m, t in itertools.product(MOODS, TAILS)]
    advice = [both(" {}.", a) for a in ADVICE]
    is_so, was_so, it_was_so = ([both(f" {words}{{}}", slot) for slot in verdicts] for words in ("is", "was", "it was"))
    felt_so = [both(" was{}", slot) for slot in moods]
    others = tuple(map(lower, PEOPLE))
    return [
        (crossed("The {} in this {} was", PARTS, WORKS), verdicts),
        (crossed("{} thought that the {} was", PEOPLE, PARTS), verdicts),
        (crossed("When the {} was over, {} felt", WORKS, others), moods),
        (crossed("If you find this {} {},", WORKS, PLACES), advice),
        (crossed("The {} that we saw {}", WORKS, TIMES), was_so),
        (crossed("{} told me that this {}", PEOPLE, WORKS), is_so),
        (crossed("{}, the {}", STARTS, PARTS), is_so),
        (crossed("When I had seen the {} {}, I", WORKS, TIMES), felt_so),
        (crossed("We watched this {} {} and", WORKS, TIMES), it_was_so),
        (crossed("The {} of the {}", PARTS, WORKS), was_so),
        (crossed("It is a {} whose {}", WORKS, PARTS), is_so),
        (crossed("As soon as the {} began, {}", WORKS, others), felt_so),
    ]


def make_pairs(count: int = 200, seed: int = 0) -> list[dict[str, str]]:
    """`count` pairs with distinct queries, the shapes in turn while they last."""
    rng = random.Random(seed)
    made: list[list[dict[str, str]]] = []
    for queries, contrasts in shapes():
        rng.shuffle(queries)
        rng.shuffle(contrasts)
        answers = itertools.cycle(contrasts)
        made.append([{"query": q, "desired": a, "undesired": b} for q, (a, b) in zip(queries, answers, strict=False)])
    in_turn = [pair for row in itertools.zip_longest(*made) for pair in row if pair is not None]
    if count > len(in_turn):
        raise ValueError(f"the grammar has {len(in_turn)} queries, {count} were asked for: add words to a slot")
    return in_turn[:count]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make minimal contrasts from a small grammar.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = make_pairs(args.count, args.seed)
    args.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
