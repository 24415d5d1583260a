"""The key-value caches of transformers: one copied by rows, so that several rows continue one prompt."""

import inspect
from dataclasses import fields
from functools import cache
from typing import Any

from odesteer_tl.backends.transformers_settings import generation_options


def cache_options() -> dict[str, Any]:
    """The options with which Hugging Face's generate fills a cache: one token is generated, and thrown away."""
    options = {"max_new_tokens": 1, "do_sample": False, "use_past_kv_cache": True}
    return generation_options(options, None) | {"return_dict_in_generate": True}


@cache
def name_in_generate() -> str:
    """The name under which generate takes and returns its cache: transformers 5.24 renamed it."""
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return "cache" if "cache" in {field.name for field in fields(GenerateDecoderOnlyOutput)} else "past_key_values"


def copied(filled: Any, columns: int, copies: int) -> Any:
    """The cache with each row `copies` times, next to one another; None where that is not known to be right: a cache
    that holds another number of `columns`, or layers of another kind than keys and values that grow."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers: list[Any] = getattr(filled, "layers", None) or [None]
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.keys is None for layer in layers):
        return None
    if int(filled.get_seq_length()) != columns:
        return None
    filled.batch_repeat_interleave(copies)
    return filled


def is_copied_by_rows(filled: Any) -> bool:
    """Whether a cache is keys and values of all columns and nothing else, so that its rows can be picked."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if type(filled) is not DynamicCache:
        return False
    return all(type(layer) is DynamicLayer and layer.keys is not None for layer in filled.layers)


def cache_argument(model: Any) -> str:
    """The name under which a model's forward takes a cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def cache_of(out: Any) -> Any:
    """The cache in a model's output, under the name that this version of transformers gives it."""
    return out["cache"] if "cache" in out else out["past_key_values"]
