"""`contrastive`: from the description of an axis to pairs of texts, through templates and whoever writes."""

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from odesteer_tl.backends.checks import whole_number
from odesteer_tl.evaluation.contrasts.axis import axis_of
from odesteer_tl.evaluation.contrasts.contrast import Contrast, Pair
from odesteer_tl.evaluation.contrasts.kept_pairs import why_dropped
from odesteer_tl.evaluation.contrasts.question_list import questions_of
from odesteer_tl.evaluation.contrasts.templates import FORMS, Example, Form, one_line, paired_prompts
from odesteer_tl.evaluation.contrasts.writers import writer_of, written
from odesteer_tl.evaluation.judged_texts import FEWEST


def contrastive(
    writer: Any,
    axis: str,
    desired: str,
    undesired: str,
    *,
    ambiguous: Sequence[str] = (),
    questions: Sequence[str] | int | None = None,
    forms: Sequence[Form] | None = None,
    personas: Sequence[tuple[str, str]] = (),
    examples: Sequence[Example] = (),
    answers: bool = True,
    held_back: float = 0.2,
    max_new_tokens: int = 60,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool | None = None,
) -> Contrast:
    """Pairs of texts that differ in what you describe: every question is asked twice, and the answers are a pair.

        found = ot.contrastive(model, "politeness", "is polite: it thanks and never insults", "is rude",
                               ambiguous=["Short answers without a word of thanks are neither."])
        print(found, found.check(model), sep="\\n\\n")                   # are they fit to fit on?
        acts = ot.collect(model, **found.texts, layer=12)
        found.save("politeness")                                     # JSON, lines, and a file for people who label

    `desired` and `undesired` complete the sentence "The answer …". `forms`: how a pair is asked for, a question each in
    turn: "system" (a system message says what must be true of the answer), "persona" (a person to speak as; `personas`
    gives pairs of people, or they are made of the definitions), "few-shot" (`examples` of one side before the question,
    (question, desired answer, undesired answer), the form for a model without a chat template). None: the first two,
    and the third where there are examples. A pair is the answers alone, after their question: what was asked stands in
    `pair.asked` and is not read. answers=False: the prompts themselves are the texts, and nothing is written; then the
    words of the definitions tell the sides apart, as `check` will say.

    `writer`: a model, asked through its chat template where it has one, sampled with `seed`, `max_new_tokens` an
    answer, cut after its last whole sentence; or a function that takes a list of chats and returns as many texts.
    `questions`: yours, or how many the writer shall write, or None for 64 everyday ones that come with the package. A
    share `held_back` of them gets no pair, and is `found.prompts`.

    Dropped, with the reason in `found.dropped`, are pairs with a side without words, sides that are near-duplicates
    (Jaccard index of 5-character shingles ≥ 0.8, as in `check_data`), an answer that repeats its prompt, or one that
    was written before. That the answers are what was asked for is not checked: read them, or have them labelled
    (`found.to_label()`).

    Raises ValueError for definitions, questions, forms or a writer of another kind, and where no pair is left; errors
    of the writer pass. Warns below 8 pairs, which `check_data` and `choose_layer` need.
    """
    of = axis_of(axis, desired, undesired, ambiguous)
    kinds, people, shown = _forms(forms, examples), _couples(personas), _examples(examples)
    writes, name, chat = writer_of(
        writer, whole_number("max_new_tokens", max_new_tokens), whole_number("seed", seed, 0)
    )
    size = whole_number("batch_size", batch_size)
    if not 0 <= held_back < 1:
        raise ValueError(f"held_back is a share of the questions, from 0 to below 1; got {held_back!r}.")
    asked = questions_of(questions, of, writes, size, progress, [one[0] for one in shown])
    random.Random(seed).shuffle(asked)
    count = min(round(held_back * len(asked)), len(asked) - 1)
    prompts, asked = asked[:count], asked[count:]
    pairs = []
    for turn, question in enumerate(asked):
        form, wording = kinds[turn % len(kinds)], turn // len(kinds)
        both = paired_prompts(of, form, question, wording, people, shown)
        pairs.append(Pair(question, one_line(both[0]), one_line(both[1]), form, both))
    if answers:
        chats = [side for pair in pairs for side in pair.asked]
        texts = written(writes, chats, size, "Writing answers", progress)
        told = list(zip(texts[::2], texts[1::2], strict=True))
        why = why_dropped(told, [(pair.desired, pair.undesired) for pair in pairs])
        pairs = [
            replace(pair, desired=good, undesired=bad, why=reason)
            for pair, (good, bad), reason in zip(pairs, told, why, strict=True)
        ]
    kept, dropped = (tuple(pair for pair in pairs if (pair.why is None) == good) for good in (True, False))
    if not kept:
        counts = ", ".join(f"{number} {one}" for one, number in Counter(pair.why for pair in dropped).items())
        raise ValueError(
            f"No pair is left of {len(pairs)}: {counts}. The first answers are {dropped[0].desired[:80]!r} and "
            f"{dropped[0].undesired[:80]!r}: give a writer that follows instructions, or examples= with "
            "forms=('few-shot',)."
        )
    if len(kept) < FEWEST:
        warnings.warn(
            f"Only {len(kept)} of {len(pairs)} pairs are left, and check_data and choose_layer need {FEWEST}: give "
            "more questions=, or another writer. See found.dropped.",
            stacklevel=2,
        )
    return Contrast(of, kept, dropped, tuple(prompts), answers, chat, name)


def _forms(forms: Any, examples: Any) -> tuple[Form, ...]:
    if forms is None:
        return FORMS if len(examples) else FORMS[:2]
    if isinstance(forms, str) or not forms or not set(forms) <= set(FORMS):
        raise ValueError(f"forms are some of {', '.join(FORMS)}, such as forms=('system',); got {forms!r}.")
    if "few-shot" in forms and not len(examples):
        raise ValueError('"few-shot" shows examples=[(question, desired answer, undesired answer), …]: give some.')
    return tuple(forms)


def _couples(personas: Any) -> list[tuple[str, str]]:
    return [_texts("personas", "(desired, undesired)", one, 2) for one in personas]


def _examples(examples: Any) -> list[Example]:
    return [_texts("examples", "(question, desired answer, undesired answer)", one, 3) for one in examples]


def _texts(what: str, form: str, given: Any, count: int) -> Any:
    good = isinstance(given, (tuple, list)) and len(given) == count
    if not good or not all(isinstance(text, str) and text.strip() for text in given):
        raise ValueError(f"{what} is a list of {form}, texts that are not empty; got {given!r}.")
    return tuple(" ".join(text.split()) for text in given)
