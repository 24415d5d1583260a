"""Sequence classifiers and reward models of transformers, which score texts and are not steered."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.checkpoints import refuse_missing
from odesteer_tl.backends.model_info import weights_digest
from odesteer_tl.backends.transformers_settings import without_progress_bars


class TextClassifier:
    """The logits of a model with a head for sequences; `name`: the Hugging Face name or folder; `labels` by number."""

    def __init__(self, model: Any, tokenizer: Any, name: str, batch_size: int = 16, max_tokens: int | None = None):
        self.model, self.tokenizer, self.name, self.batch_size = model, tokenizer, name, batch_size
        self.labels: dict[int, str] = {int(number): str(own) for number, own in model.config.id2label.items()}
        self.revision = getattr(model.config, "_commit_hash", None)
        self.several = model.config.problem_type == "multi_label_classification"
        own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        known = [size for size in (max_tokens, own, tokenizer.model_max_length) if size is not None]
        self.max_tokens = min(known) if known else None

    @classmethod
    def load(
        cls, name_or_folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None, batch_size: int = 16,
        max_tokens: int | None = None,
    ) -> "TextClassifier":  # fmt: skip
        """Load by a Hugging Face name or from a folder; float32 unless `dtype`. Raises the error of transformers where
        there is none, and ValueError for a checkpoint without the head, whose scores would be chance."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with without_progress_bars():
            model, said = AutoModelForSequenceClassification.from_pretrained(
                str(name_or_folder), dtype=dtype or torch.float32, output_loading_info=True
            )
        refuse_missing(str(name_or_folder), said["missing_keys"], "trained classifier")
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_folder), truncation_side="left")
        if model.config.pad_token_id is None:
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model.to(device).eval(), tokenizer, str(name_or_folder), batch_size, max_tokens)

    @torch.no_grad()
    def logits(self, texts: Sequence[str], special_tokens: bool = True) -> Float[Tensor, "n labels"]:
        """Of every text, on the CPU in float64. Texts longer than the model's context lose their beginnings, as an
        answer stands at the end; warns of them."""
        self._warn_of_long(texts, special_tokens)
        found = []
        for first in range(0, len(texts), self.batch_size):
            part = [text or " " for text in texts[first : first + self.batch_size]]
            batch = self.tokenizer(
                part, return_tensors="pt", padding=True, truncation=True, max_length=self.max_tokens,
                add_special_tokens=special_tokens,
            )  # fmt: skip
            found.append(self.model(**batch.to(self.model.device)).logits.double().cpu())
        return torch.cat(found) if found else torch.empty(0, len(self.labels), dtype=torch.float64, device="cpu")

    def record(self) -> dict[str, Any]:
        """What scores depend on, in plain values."""
        of_model = {"revision": self.revision, "weights": weights_digest(self.model)}
        return of_model | {"dtype": str(self.model.dtype).removeprefix("torch."), "max_tokens": self.max_tokens}

    def _warn_of_long(self, texts: Sequence[str], special_tokens: bool) -> None:
        if self.max_tokens is None or not texts:
            return
        ids = self.tokenizer(list(texts), add_special_tokens=special_tokens, verbose=False)["input_ids"]
        long = sum(len(own) > self.max_tokens for own in ids)
        if long:
            warnings.warn(
                f"{long} of {len(texts)} texts are longer than the {self.max_tokens} tokens that {self.name} reads: "
                "their beginnings are left out.",
                stacklevel=4,
            )

    def chat(self, messages: list[dict[str, str]]) -> str:
        """The messages in the model's chat template. Raises ValueError for a model without one."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(f"{self.name} has no chat template: leave out chat=True.")
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
