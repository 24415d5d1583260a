"""What is to be told apart: a name, what is true of either side's answers, and what is neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Axis:
    """`desired` and `undesired` complete the sentence "The answer …", as in "is polite: it thanks and never insults".
    `ambiguous`: cases that belong to neither side, for people who label."""

    name: str
    desired: str
    undesired: str
    ambiguous: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[str, str]:
        """Both definitions, the desired side's first."""
        return self.desired, self.undesired


def axis_of(name: Any, desired: Any, undesired: Any, ambiguous: Any) -> Axis:
    """The axis, each text on one line. Raises ValueError for an empty definition, and for two that are the same."""
    for what, text in (("axis", name), ("desired", desired), ("undesired", undesired)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{what} is a text: axis names what differs, and desired and undesired complete the sentence 'The "
                f"answer …', as in desired='is polite: it thanks and never insults'; got {text!r}."
            )
    cases = _lines("ambiguous", ambiguous)
    words, good, bad = (" ".join(text.split()).rstrip(" .") for text in (name, desired, undesired))
    found = Axis(words, good, bad, tuple(cases))
    if found.desired.casefold() == found.undesired.casefold():
        raise ValueError(f"desired and undesired are both {found.desired!r}: say what tells the sides apart.")
    return found


def _lines(what: str, texts: Any) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"{what} is a list of texts; got {texts!r}.")
    return [" ".join(text.split()) for text in texts]
