"""Judges that are models of transformers, by name or folder: classifiers, and reward models."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.text_classifier import TextClassifier

TURNS = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
"""The roles of chat messages, by who speaks in a dialogue of HH-RLHF."""


@dataclass(frozen=True, eq=False)
class ClassifierJudge:
    """P(label | text): softmax over the labels, or σ where the model has one logit or labels that do not exclude each
    other.

        benchmarks.ClassifierJudge.load("s-nlp/roberta_toxicity_classifier", "toxic")
    """

    of: TextClassifier
    label: int

    @classmethod
    def load(cls, name_or_folder: str | Path, label: str | int, **options: Any) -> "ClassifierJudge":
        """`label`: its name in the model's configuration, or its number; `options` as for `TextClassifier.load`.
        Raises ValueError for a label that the model does not have."""
        of = TextClassifier.load(name_or_folder, **options)
        numbers = [number for number, own in of.labels.items() if label in (own, number)]
        if len(numbers) != 1:
            raise ValueError(f"{of.name} has the labels {', '.join(of.labels.values())}, and not {label!r}.")
        return cls(of, numbers[0])

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, " n"]:
        logits = self.of.logits(texts)
        if logits.shape[1] == 1 or self.of.several:
            return logits[:, self.label].sigmoid()
        return logits.softmax(-1)[:, self.label]

    def record(self) -> dict[str, Any]:
        """In plain values."""
        return {"judge": self.of.name, "label": self.of.labels[self.label]} | self.of.record()


@dataclass(frozen=True, eq=False)
class RewardJudge:
    """The one logit of a reward model, as it is. `chat`: a text is a dialogue with "\\n\\nHuman:" and
    "\\n\\nAssistant:", as in HH-RLHF, which is put into the model's chat template.

        benchmarks.RewardJudge.load("Skywork/Skywork-Reward-V2-Llama-3.1-8B", chat=True, dtype=torch.bfloat16)
    """

    of: TextClassifier
    chat: bool = False

    @classmethod
    def load(cls, name_or_folder: str | Path, chat: bool = False, **options: Any) -> "RewardJudge":
        """Raises ValueError for a model with several logits, and for `chat` where it has no template."""
        of = TextClassifier.load(name_or_folder, **options)
        if len(of.labels) != 1:
            raise ValueError(f"{of.name} has {len(of.labels)} labels; a reward model has one: take ClassifierJudge.")
        if chat:
            of.chat([{"role": "user", "content": "x"}])
        return cls(of, chat)

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, " n"]:
        given = [self.of.chat(messages_of(text)) for text in texts] if self.chat else texts
        return self.of.logits(given, special_tokens=not self.chat)[:, 0]

    def record(self) -> dict[str, Any]:
        """In plain values."""
        return {"judge": self.of.name, "chat": self.chat} | self.of.record()


def messages_of(dialogue: str) -> list[dict[str, str]]:
    """The turns of a dialogue as chat messages. Raises ValueError where it does not begin with a turn."""
    start, *parts = TURNS.split(dialogue)
    if start.strip() or not parts:
        raise ValueError(f"A dialogue begins with a turn, \\n\\nHuman: …; got {dialogue[:60]!r}.")
    return [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
