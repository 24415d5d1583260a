"""Checkpoints that lack weights of their model: transformers fills these with random numbers, and only logs it."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from odesteer_tl.backends.transformers_settings import without_progress_bars

_LOG = logging.getLogger("transformers")


def check_whole(name: str) -> None:
    """Raises ValueError for a Hugging Face name or folder whose checkpoint lacks weights. Names and shapes are read,
    and no numbers. A quantised checkpoint, and one that transformers cannot read, is left to what loads it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    missing: Iterable[str] = ()
    level = _LOG.level
    _LOG.setLevel(logging.ERROR)  # the loader logs the same again
    try:
        with without_progress_bars(), suppress(Exception):
            if getattr(AutoConfig.from_pretrained(name), "quantization_config", None) is None:
                loaded: Any = AutoModelForCausalLM.from_pretrained(name, device_map="meta", output_loading_info=True)
                missing = loaded[1]["missing_keys"]
    finally:
        _LOG.setLevel(level)
    refuse_missing(name, missing)


def refuse_missing(name: str, missing: Iterable[str], kind: str = "language model") -> None:
    """Raises ValueError where a checkpoint of this `kind` lacks weights, as that of a classifier lacks a language
    head."""
    if keys := sorted(map(str, missing)):
        raise ValueError(f"{name} lacks {', '.join(keys[:3])}, which would be random: it is no {kind}.")
