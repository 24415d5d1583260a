"""A model with the steering that a harness asked for: what it answers, and how much of each answer was steered."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from odesteer_tl.backends.checks import check_place, whole_number
from odesteer_tl.backends.likelihoods import Likelihoods, likelihoods
from odesteer_tl.backends.model_info import context_of, device_of, model_name_of
from odesteer_tl.backends.steer import edit_runner_for
from odesteer_tl.backends.tokenize import left_padded, plain_tokenizer, tokenise
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.evaluation.calibrate import calibrate
from odesteer_tl.evaluation.strength_search import check_budget
from odesteer_tl.integrations.given import lines_given, method_given, model_given, positions_given
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods.calibrated import positions_name
from odesteer_tl.portable.method_list import members_of, pairs_of
from odesteer_tl.portable.strength import Strength

CONTEXTS, CONTINUED = 24, 24
"""How many contexts a strength is found on, and how many tokens the model writes after each."""


@dataclass(eq=False)
class SteeredModel:
    """A model of any library, and what steers it (nothing, where `method` is None).

    `strength` None: the method carries its own, or `budget` (KL in nats) is to be spent and `calibrate` was not called
    yet. `layers`: those that are written.
    """

    model: Any
    method: Any = None
    strength: Strength | None = None
    budget: float | None = None
    quantile: float | None = None
    positions: Positions = "decoding"
    layer: int | None = None
    blocks: Any = None
    remote: bool | str = False
    batch_size: int = 16
    found: Any = None
    tokenizer: Any = field(init=False)
    layers: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.batch_size = whole_number("batch_size", self.batch_size)
        check_place(self.model, self.remote, self.blocks)
        if self.budget is not None:
            check_budget(self.budget)
        self.tokenizer = plain_tokenizer(self.model)
        if self.method is None:
            if self.strength is not None or self.budget is not None:
                raise ValueError("A strength was given without a method: give method=FOLDER, or leave it out.")
            return
        carried = _carried(self.method)
        if self.strength is not None and self.budget is not None:
            raise ValueError("Give T, relative_T or kl: one of them says how strongly is steered.")
        if self.budget is not None and carried is not None and carried == (float(self.budget), self.quantile):
            self.budget = None  # the strength that the method carries is the one that is asked for
        if self.strength is None and self.budget is None and carried is None:
            raise ValueError("The method carries no strength: give kl=0.1, T= or relative_T=.")
        tried = self.strength or (Strength(0.0) if self.budget is not None and carried is None else None)
        pairs = pairs_of(self.method, tried, None, self.layer)
        self.layers = sorted(
            edit_runner_for(self.model, pairs, self.positions, None, self.layer, self.blocks).tokens_steered
        )

    @classmethod
    def of(
        cls,
        pretrained: Any,
        method: Any = None,
        *,
        T: float | None = None,
        relative_T: float | None = None,
        kl: float | None = None,
        quantile: float | None = None,
        prompts: str | Path | None = None,
        positions: Any = "decoding",
        layer: int | None = None,
        blocks: Any = None,
        remote: bool | str = False,
        library: str = "transformer_lens",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 16,
        chat_template: bool | str = False,
    ) -> "SteeredModel":
        """Load what a command line names. With `kl` and `prompts` (a file) the strength is found at once; these prompts
        stand in `chat_template`. Raises ValueError for wrong arguments, and as `ot.load`,
        `ot.load_model` and `ot.calibrate` do."""
        strength = None if T is None and relative_T is None else Strength.of(T, relative_T)
        where = positions_given(positions)
        library = "nnsight" if remote and library == "transformer_lens" and isinstance(pretrained, str) else library
        fitted = method_given(method)
        model = model_given(pretrained, library, device, dtype)
        steered = cls(model, fitted, strength, kl, quantile, where, layer, blocks, remote, batch_size)
        if prompts is not None and steered.budget is not None:
            steered.calibrate(tokenise(model, lines_given(prompts), chat_template=chat_template))
        return steered

    @property
    def needs_contexts(self) -> bool:
        """Whether a budget is to be spent and the strength is not found yet."""
        return self.method is not None and self.budget is not None and self.found is None

    def calibrate(self, contexts: Tokenised | Sequence[list[int]]) -> None:
        """Find the strength that spends the budget on `CONTEXTS` of these contexts, spread evenly over all that differ;
        long ones lose their beginning. Raises ValueError as `ot.calibrate` does."""
        if not isinstance(contexts, Tokenised):
            different = list(dict.fromkeys(map(tuple, contexts)))
            count = min(CONTEXTS, len(different))
            room = (context_of(self.model) or 10**9) - CONTINUED
            kept = [list(different[n * len(different) // count])[-room:] for n in range(count)]
            contexts = left_padded(kept, 0)
        self.found = calibrate(
            self.model, self.method, contexts, self.budget, quantile=self.quantile, positions=self.positions,
            layer=self.layer, max_new_tokens=CONTINUED, batch_size=self.batch_size, remote=self.remote,
            blocks=self.blocks,
        )  # fmt: skip
        self.method, self.layer = self.found.method, None

    @property
    def steering(self) -> dict[str, Any]:
        """The arguments of `ot.generate` and `likelihoods` that steer."""
        if self.needs_contexts:
            raise ValueError("The strength is not found yet: call calibrate first.")
        where = {"remote": self.remote, "blocks": self.blocks, "batch_size": self.batch_size}
        if self.method is None:
            return where
        return where | {"method": self.method, "T": self.strength, "positions": self.positions, "layer": self.layer}

    def likelihoods(self, contexts: Sequence[list[int]], continuations: Sequence[list[int]]) -> Likelihoods:
        """`backends.likelihoods.likelihoods` of each continuation after its context, both token ids."""
        texts = left_padded([one + other for one, other in zip(contexts, continuations, strict=True)], 0)
        lengths = torch.tensor([len(one) for one in contexts], device="cpu")
        return likelihoods(self.model, texts, lengths, **self.steering)

    @property
    def described(self) -> dict[str, Any]:
        """What steers, in plain values, for the record of a run."""
        device = str(device_of(self.model))
        said: dict[str, Any] = {"model": model_name_of(self.model), "device": device, "method": None}
        if self.method is None:
            return said
        pairs = [] if self.needs_contexts else pairs_of(self.method, self.strength, None, self.layer)
        said["method"] = [_name(method) for method, _ in pairs] or _name(self.method)
        said["layers"] = self.layers
        said["strength"] = [{"T": each.T, "relative_T": each.relative_T} for _, each in pairs]
        said["kl"] = self.budget if self.strength is None and self.budget is not None else self._carried_kl
        if self.found is not None:
            said |= {"kl_spent": self.found.spent, "calibrated_on_tokens": self.found.tokens}
        return said | {"positions": positions_name(self.positions), "remote": bool(self.remote)}

    @property
    def _carried_kl(self) -> float | None:
        carried = None if self.strength is not None else _carried(self.method)
        return None if carried is None else carried[0]


def _carried(method: Any) -> tuple[float | None, float | None] | None:
    """The budget and its quantile that the strengths of a method, or a list of methods, were found for: (None, None)
    where they come from elsewhere or differ. None for a method that carries no strength."""
    try:
        pairs_of(method, None, None)
    except ValueError:
        return None
    budgets = {(getattr(one, "kl", None), getattr(one, "quantile", None)) for one, _ in members_of(method, None, None)}
    return budgets.pop() if len(budgets) == 1 else (None, None)


def _name(method: Any) -> str:
    return type(method).__name__
