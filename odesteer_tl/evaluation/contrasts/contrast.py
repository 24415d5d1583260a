"""What `ot.contrastive` returns: pairs with what was asked, definitions, what was dropped, and prompts held back."""

import hashlib
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from odesteer_tl.backends.chat_templates import Chat
from odesteer_tl.evaluation.contrasts import contrast_files as files
from odesteer_tl.evaluation.contrasts.axis import Axis
from odesteer_tl.evaluation.data_check.check_data import check_data
from odesteer_tl.evaluation.data_check.report import DataCheck
from odesteer_tl.remote.checks import StaysHere

LABELS = ("desired", "undesired", "ambiguous")


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in the axis: answers to one `question`, or the prompts themselves. `asked`: the chats that
    they were written for, or are; `why`: why the pair is not kept."""

    question: str
    desired: str
    undesired: str
    form: str
    asked: tuple[Chat, Chat]
    why: str | None = None


@dataclass(frozen=True)
class Contrast(StaysHere):
    """Pairs of texts for one axis, and all that people need to check them.

        found = ot.contrastive(model, "politeness", "is polite", "is rude")
        acts = ot.collect(model, **found.texts, layer=12)            # also of check_data and choose_layer
        found.save("politeness")                                    # ot.Contrast.load("politeness")

    `axis`: its name, the definitions of both sides, and the `ambiguous` cases. `dropped`: pairs that are not kept, with
    the reason. `prompts`: questions that no pair has, to generate from: `ot.sweep` takes the object as its data.
    `answers`: whether the texts are answers, or the prompts themselves. `chat`: whether they belong after the model's
    chat template. `writer`: who wrote.
    """

    usual_name: ClassVar[str] = "found"
    usual_part: ClassVar[str] = "texts"

    axis: Axis
    pairs: tuple[Pair, ...]
    dropped: tuple[Pair, ...]
    prompts: tuple[str, ...]
    answers: bool
    chat: bool
    writer: str

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def desired(self) -> list[str]:
        """The desired texts, in the order of the pairs. An answer that no chat template precedes begins with a space,
        as it follows its question."""
        return [self._as_read(pair.desired) for pair in self.pairs]

    @property
    def undesired(self) -> list[str]:
        """The undesired texts, in the same order."""
        return [self._as_read(pair.undesired) for pair in self.pairs]

    @property
    def questions(self) -> list[str]:
        """The question of each pair."""
        return [pair.question for pair in self.pairs]

    @property
    def texts(self) -> dict[str, Any]:
        """The arguments of `collect`, `check_data` and `choose_layer`: both sides, and that they are pairs."""
        own: dict[str, Any] = {"queries": self.questions} if self.answers else {"paired": True}
        template = {"chat_template": True} if self.chat else {}
        return {"desired": self.desired, "undesired": self.undesired} | own | template

    def check(self, model: Any, **options: Any) -> DataCheck:
        """`ot.check_data` of these texts, with its other arguments as `options`."""
        return check_data(model, **self.texts | options)

    def __str__(self) -> str:
        counts = Counter(pair.why for pair in self.dropped)
        why = f" ({', '.join(f'{number} {one}' for one, number in counts.items())})" if counts else ""
        lines = [
            f"{self.axis.name}: {len(self)} pairs, written by {self.writer}; {len(self.dropped)} dropped{why}; "
            f"{len(self.prompts)} questions held back as prompts",
            f"desired     The answer {self.axis.desired}.",
            f"undesired   The answer {self.axis.undesired}.",
            *(f"ambiguous   {case}" for case in self.axis.ambiguous),
        ]
        for pair in self.pairs[:3]:
            lines += ["", f"{pair.form:<11} {_short(pair.question)}"]
            lines += [f"desired     {_short(pair.desired)}", f"undesired   {_short(pair.undesired)}"]
        return "\n".join(lines)

    def to_label(self) -> list[dict[str, Any]]:
        """A record per text, for people who do not know its side: an `id`, the `question`, the `text`, and the empty
        `label`, which is to become "desired", "undesired" or "ambiguous". The order says nothing of the side."""
        records = [
            {"id": number_of(pair, side), "question": pair.question, "text": getattr(pair, side), "label": None}
            for pair in self.pairs
            for side in LABELS[:2]
        ]
        return sorted(records, key=lambda record: record["id"])

    def labelled(self, labels: Mapping[str, str | None] | str | Path) -> "Contrast":
        """Without the pairs of which a text got another label than its side; None is no label, and changes nothing.

        `labels`: by id, or the file `to_label.jsonl` of a saved folder, filled in. What falls out is in `dropped`, so
        that len(found.labelled(file)) / len(found) is the agreement by pairs. Raises ValueError for an id that no text
        has, another label, and a file that holds no records.
        """
        given = labels if isinstance(labels, Mapping) else files.labels_in(Path(labels))
        known = {number_of(pair, side): side for pair in self.pairs for side in LABELS[:2]}
        for number, label in given.items():
            if number not in known or label not in (None, *LABELS):
                raise ValueError(
                    f"labels are by the ids of to_label(), each {', '.join(LABELS)} or None; got {number!r}: {label!r}."
                )
        wrong = {number for number, label in given.items() if label is not None and label != known[number]}
        out = [pair for pair in self.pairs if wrong & {number_of(pair, side) for side in LABELS[:2]}]
        kept = tuple(pair for pair in self.pairs if pair not in out)
        gone = tuple(replace(pair, why="labelled otherwise") for pair in out)
        return replace(self, pairs=kept, dropped=self.dropped + gone)

    def save(self, folder: str | Path) -> None:
        """Write a new folder: contrast.json (everything), desired.txt, undesired.txt and questions.txt (line i of each
        belongs together, as `odesteer-tl fit` reads them), prompts.txt, and to_label.jsonl.

        Raises ValueError for a folder that holds anything, and OSError where the disk refuses; then nothing is left.
        """
        lines = {"desired.txt": self.desired, "undesired.txt": self.undesired, "prompts.txt": list(self.prompts)}
        if self.answers:
            lines["questions.txt"] = self.questions
        files.write(Path(folder), self, lines, self.to_label())

    @classmethod
    def load(cls, folder: str | Path) -> "Contrast":
        """Read contrast.json of a folder that `save` wrote. Raises ValueError for any other."""
        tree = files.read(Path(folder))
        try:
            pairs, dropped = (
                tuple(Pair(**one | {"asked": tuple(map(files.chat_in, one["asked"]))}) for one in tree.pop(name))
                for name in ("pairs", "dropped")
            )
            axis = tree.pop("axis")
            of = Axis(**axis | {"ambiguous": tuple(axis["ambiguous"])})
            found = cls(of, pairs, dropped, tuple(tree.pop("prompts")), **tree)
            files.check_texts(found)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder}/contrast.json is none that Contrast.save wrote: {error}.") from error
        return found

    def _as_read(self, text: str) -> str:
        return text if self.chat or not self.answers else f" {text}"


def number_of(pair: Pair, side: str) -> str:
    """The id of a text: a digest of its question and itself, which says nothing of its side."""
    return hashlib.sha256(f"{pair.question}\0{getattr(pair, side)}".encode()).hexdigest()[:12]


def _short(text: str) -> str:
    return textwrap.shorten(text, 96, placeholder=" …")
