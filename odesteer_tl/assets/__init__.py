"""The embedded default: a tiny language model and the texts to steer it with, so that everything runs offline.

This file holds only paths and readers; nothing is loaded on import. `MODEL_CARD.md` in this folder documents the origin
of each part; the scripts `make_*.py` make them.
"""

import gzip
import json
from pathlib import Path

FOLDER = Path(__file__).parent


def model_folder() -> Path:
    """The folder of the language model, as `transformers` loads it (6 layers, d_model 256, float16)."""
    return FOLDER / "model"


def texts() -> dict[str, dict[str, list[str]]]:
    """Ends of film reviews, 60 words each: `texts()[role][side]`.

    The role is "fit" (300 a side) or "validation" (100 a side), the side "desired" (positive) or "undesired".
    """
    return _read("texts.json")


def prompts() -> dict[str, list[str]]:
    """Openings of review sentences without a verdict: 40 under "test", 24 others under "validation"."""
    return _read("prompts.json")


def pairs() -> list[dict[str, str]]:
    """Minimal contrasts: a "query" with a "desired" and an "undesired" answer, which are appended to it unchanged."""
    return _read("pairs.json")


def heldout_reviews() -> list[dict[str, str | int]]:
    """500 whole reviews that the judge was not trained on: "text" and "label" (1 positive, 0 negative)."""
    with gzip.open(FOLDER / "heldout.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _read(name: str):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))
