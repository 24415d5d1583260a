"""The configuration and the generation settings of a Hugging Face model, for nnsight, which wraps such a model, and for
the model alone."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from odesteer_tl.backends.base import Size
from odesteer_tl.backends.upstream_names import made_by, need

_NAMES = {"d_model": "hidden_size", "n_ctx": "max_position_embeddings", "d_vocab": "vocab_size"}
_NEVER = 2**31 - 1


def text_config(module: Any) -> Any:
    """The configuration of the text part of a model, or None."""
    config = getattr(module, "config", None)
    inner = getattr(config, "get_text_config", None)
    return inner() if callable(inner) else config


def configured_size(module: Any, name: Size) -> int | None:
    """A number of the configuration, or None. Warns if a configuration with rotary embeddings does not have it, because
    transformers may have renamed it."""
    config, config_name = text_config(module), _NAMES[name]
    value = getattr(config, config_name, None)
    if value is None and getattr(config, "rope_parameters", None) is not None:
        warnings.warn(
            f"The configuration of this {made_by(module)} does not say its {config_name}: a method of another width, "
            "or a text longer than the model holds, is not noticed.",
            stacklevel=5,
        )
    return value


def configured_eos(module: Any) -> Any:
    """The tokens that end a text: those of the generation settings, else those of the configuration."""
    eos = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    return getattr(text_config(module), "eos_token_id", None) if eos is None else eos


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its BOS before a text."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


@contextmanager
def settings_put_aside(module: Any) -> Iterator[None]:
    """Inside the block the checkpoint's own generation settings (banned words, lengths, penalties) do not act."""
    if hasattr(module, "generate"):
        need(module, "generation_config", "whose own settings would override the arguments of generate")
    settings = getattr(module, "generation_config", None)
    try:
        if settings is not None:
            module.generation_config = type(settings)(bos_token_id=settings.bos_token_id)
        yield
    finally:
        if settings is not None:
            module.generation_config = settings


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Inside the block transformers shows no progress bars."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def generation_options(options: dict[str, Any], pad_id: int | None) -> dict[str, Any]:
    """The options of ot.generate under Hugging Face's names. Every setting that checkpoints usually bring is given a
    value, so that the text does not depend on the checkpoint's settings."""
    sampling = options["do_sample"]
    eos = options.get("eos_token_id")
    return {
        "max_new_tokens": options["max_new_tokens"],
        "do_sample": sampling,
        "temperature": options["temperature"] if sampling else 1.0,
        "top_k": (options["top_k"] or 0) if sampling else 50,
        "top_p": (options["top_p"] or 1.0) if sampling else 1.0,
        "min_p": 0.0 if sampling else None,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "guidance_scale": 1.0,
        "suppress_tokens": [],
        "num_beams": options.get("num_beams", 1),
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "use_cache": options["use_past_kv_cache"],
        # No vocabulary has this token, so no token ends a text.
        "eos_token_id": _NEVER if eos is None else eos,
        "pad_token_id": 0 if pad_id is None else pad_id,
    }
