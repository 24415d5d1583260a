"""A judge that is a causal language model: how likely its next token is a yes.

truth = benchmarks.LanguageModelJudge.load("allenai/truthfulqa-truth-judge-llama2-7B", "{text}\nTrue:")
info = benchmarks.LanguageModelJudge.load("allenai/truthfulqa-info-judge-llama2-7B", "{text}\nHelpful:")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends import load_model
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.tokenize import check_context, tokenise
from odesteer_tl.evaluation.sweeps.plan import model_record

TEXT = "{text}"


@dataclass(frozen=True, eq=False)
class LanguageModelJudge:
    """p(yes) / (p(yes) + p(no)) for the first tokens of `answers` after the `template` with a text in it. `name` stands
    under the table."""

    model: Any
    name: str
    template: str
    answers: tuple[str, str] = (" yes", " no")
    batch_size: int = 8

    def __post_init__(self) -> None:
        _check_template(self.template)
        yes, no = self._firsts()
        if yes == no:
            raise ValueError(f"The answers {self.answers} begin with the same token, {yes}: give others.")

    @classmethod
    def load(
        cls, name_or_folder: str | Path, template: str, answers: tuple[str, str] = (" yes", " no"), device: str = "cpu",
        dtype: torch.dtype | None = None, batch_size: int = 8,
    ) -> "LanguageModelJudge":  # fmt: skip
        """Raises ValueError for a template without {text}, for answers that do not begin with tokens of their own, and
        for a checkpoint without a language head; the error of transformers if there is no such model."""
        _check_template(template)
        model = load_model(name_or_folder, device, dtype, library="huggingface")
        return cls(model, str(name_or_folder), template, answers, batch_size)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, " n"]:
        found, (yes, no) = [], self._firsts()
        for first in range(0, len(texts), self.batch_size):
            asked = [self.template.replace(TEXT, text) for text in texts[first : first + self.batch_size]]
            batch = tokenise(self.model, asked)
            check_context(self.model, batch)
            last = backend_of(self.model).logits(self.model, batch)[:, -1].double()
            found.append((last[:, yes] - last[:, no]).sigmoid())
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device="cpu")

    def record(self) -> dict[str, Any]:
        """In plain values."""
        own = {name: one for name, one in model_record(self.model).items() if name != "name"}
        return {"judge": self.name, "template": self.template, "answers": list(self.answers)} | own

    def _firsts(self) -> tuple[int, int]:
        """The first token of each answer as it continues the template."""
        before = self.template.replace(TEXT, "x")
        rows = tokenise(self.model, [before, *(before + answer for answer in self.answers)])
        start, *both = (row[mask].tolist() for row, mask in zip(*rows, strict=True))
        for answer, whole in zip(self.answers, both, strict=True):
            if len(whole) <= len(start) or whole[: len(start)] != start:
                raise ValueError(
                    f"The answer {answer!r} has no token of its own after {before[-20:]!r}: end the template before "
                    "the space, and begin the answers with it."
                )
        yes, no = both
        return yes[len(start)], no[len(start)]


def _check_template(template: str) -> None:
    if template.count(TEXT) != 1:
        raise ValueError(f"The template of a judge holds {TEXT} once; got {template!r}.")
