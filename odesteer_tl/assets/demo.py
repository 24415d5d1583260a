"""The embedded default: a small language model, contrastive text and prompts, so that everything runs offline."""

from dataclasses import dataclass
from typing import Any

from odesteer_tl import assets
from odesteer_tl.backends import load_model
from odesteer_tl.backends.base import Library

EMBEDDED = "embedded"
"""The name of the embedded model, in saved methods and on the command line."""


@dataclass(frozen=True)
class Demo:
    """A model of film reviews with texts to fit methods on; `desired` is praise, `undesired` its opposite.

    `pairs` holds dicts with a query, a desired and an undesired answer; `prompts` are openings without a verdict;
    `validation_*` are for choosing strengths and are disjoint from the rest.
    """

    model: Any
    desired: list[str]
    undesired: list[str]
    validation_desired: list[str]
    validation_undesired: list[str]
    prompts: list[str]
    validation_prompts: list[str]
    pairs: list[dict[str, str]]


def load_demo(model: Any = None, device: str = "cpu", library: Library = "transformer_lens", dtype: Any = None) -> Demo:
    """Load the embedded model (or take the given `model`) with texts, prompts and pairs. Offline, in a few seconds."""
    if model is None:
        model = load_model(assets.model_folder(), device=device, dtype=dtype, library=library)
        if library == "transformer_lens":
            model.cfg.model_name = EMBEDDED  # so that fitted methods store this name, not the path of the package
    texts, prompts = assets.texts(), assets.prompts()
    return Demo(
        model=model,
        desired=texts["fit"]["desired"],
        undesired=texts["fit"]["undesired"],
        validation_desired=texts["validation"]["desired"],
        validation_undesired=texts["validation"]["undesired"],
        prompts=prompts["test"],
        validation_prompts=prompts["validation"],
        pairs=assets.pairs(),
    )
