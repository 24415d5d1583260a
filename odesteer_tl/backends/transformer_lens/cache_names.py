"""Passes the KV cache between TransformerLens and transformers under the name that each of them reads.

transformers 5.24 renamed the argument `past_key_values` to `cache`. The attention of a TransformerBridge up to
TransformerLens 4.3 reads only the old name. So nothing is cached, and every decoded token attends to itself alone: the
bridge's own `generate` writes wrong text, steered or not, without an error. State-space models lose their state in the
same way, between the bridge and the model.
"""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from odesteer_tl.backends.torch_hooks import removal
from odesteer_tl.backends.upstream_names import library

_OLD = ("past_key_values", "layer_past", "cache_params")
_MARK = "_odesteer_tl_cache_names"


def rename_permanently(model: Any) -> Any:
    """The same TransformerBridge, with permanent hooks that rename the cache argument, if that is needed."""
    if _needed(model) and not hasattr(model.original_model, _MARK):
        _hooks(model)
        setattr(model.original_model, _MARK, True)
    return model


@contextmanager
def renamed(model: Any) -> Iterator[None]:
    """Inside the block the cache argument is renamed, and the warning of transformers about the old name is not shown.
    Warns if the model's own generate is wrong outside the block."""
    if not _needed(model):
        yield
        return
    logger = logging.getLogger("transformers.utils.generic")
    logger.addFilter(_is_other_message)
    try:
        if hasattr(model.original_model, _MARK):
            yield
        else:
            with _renamed_with_warning(model):
                yield
    finally:
        logger.removeFilter(_is_other_message)


def _is_other_message(record: logging.LogRecord) -> bool:
    return "past_key_values" not in record.getMessage()


@contextmanager
def _renamed_with_warning(model: Any) -> Iterator[None]:
    warnings.warn(
        f"{library('transformer_lens')} loses the KV cache of {library('transformers')}, which has another name there: "
        "outside odesteer_tl this model's generate writes wrong text with its cache on. Load the model with "
        'ot.load_model(name), pass use_past_kv_cache=False to its generate, or pip install "transformers<5.24".',
        stacklevel=2,
    )
    removals = _hooks(model)
    try:
        yield
    finally:
        for remove in removals:
            remove()


def _needed(model: Any) -> bool:
    """Whether transformers uses the new name and the installed TransformerLens does not read it."""
    inner = getattr(model, "original_model", None)
    if inner is None or not _takes_new_name(type(inner).forward):
        return False
    attention = next((module for module in model.modules() if hasattr(module, "_update_kv_cache")), None)
    return attention is None or not _reads_new_name(type(attention)._update_kv_cache)


@cache  # as the source of a function is searched for in its whole file
def _reads_new_name(update: Callable[..., Any]) -> bool:
    return '"cache"' in inspect.getsource(update)


@cache
def _takes_new_name(forward: Callable[..., Any]) -> bool:
    return "cache" in inspect.signature(forward).parameters


def _hooks(model: Any) -> list[Callable[[], None]]:
    attention = [module for module in model.original_model.modules() if hasattr(module, "_update_kv_cache")]
    delegates = [module.original_component for module in attention if hasattr(module, "original_component")]
    inner_modules = [model.original_model, *(module for module in delegates if module is not None)]
    pairs = [*((module, _to_old) for module in attention), *((module, _to_new) for module in inner_modules)]
    return [
        removal(module, module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
        for module, hook in pairs
    ]


def _to_old(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if kwargs.get("cache") is None or any(kwargs.get(name) is not None for name in _OLD):
        return None
    return args, kwargs | {"past_key_values": kwargs["cache"]}


def _to_new(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    old = [kwargs[name] for name in _OLD if kwargs.get(name) is not None]
    if not old or any(cache is not old[0] for cache in [*old, kwargs.get("cache")] if cache is not None):
        return None
    return args, {name: value for name, value in kwargs.items() if name not in _OLD} | {"cache": old[0]}
