"""The cache in a call of a model or of one of its blocks, and how many columns it holds.

Libraries rename the argument that carries the cache, so it is recognised by its type: Hugging Face's caches (dynamic,
static, sliding, quantised, encoder–decoder, state-space) and tuples of keys and values. This file is sent to servers,
so it uses torch alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.portable.model_inputs import refuse_packed, unread

_PLAIN = (bool, int, float, str, Tensor)


def offset_in(arguments: dict[str, Any], width: int, state: Any, library: str) -> tuple[int, Any]:
    """The number of columns before a pass of `width` columns, by the cache in the call, and that cache.

    `arguments` are those of the module that runs all blocks. `state(cache)`: the number of columns seen by a cache
    that stores none (of a state-space model), or None if unknown. Raises ValueError for a cache that cannot be read,
    and for a mask of another number of columns.
    """
    refuse_packed(arguments, library)
    cache = cache_in(arguments, library)
    offset = 0 if cache is None else length_of(cache, state(cache), library)
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and not _covers(mask, offset, width, cache):
        raise unread(
            arguments,
            library,
            f"the cache holds {offset} columns and this pass has {width}, but the attention mask covers "
            f"{mask.shape[1]}: give it one entry per token, cached tokens included, [batch, {offset + width}]",
        )
    return offset, cache


def cache_in(arguments: dict[str, Any], library: str) -> Any:
    """The cache among the arguments of a call, under any name; None if there is none.

    Raises ValueError for two caches, and if the only argument that looks like a cache has no length.
    """
    caches: list[Any] = []
    unclear: list[str] = []
    for name, value in arguments.items():
        if value is None or isinstance(value, _PLAIN):
            continue
        if hasattr(value, "get_seq_length") or _is_legacy(name, value):
            caches += [] if any(other is value for other in caches) else [value]
        elif _sounds_like_one(name, value):
            unclear.append(f"{name}, a {type(value).__name__},")
    if unclear and not caches:
        raise unread(arguments, library, f"the cache in {' and '.join(unclear)} does not say its length")
    if len(caches) > 1:
        raise unread(arguments, library, f"{len(caches)} caches are given, and it is not known which one counts")
    return caches[0] if caches else None


def length_of(cache: Any, state: int | None, library: str) -> int:
    """The number of columns in a cache. For a cache that keeps a state and no columns: `state`, or 0 if it is empty.

    Raises ValueError if the number is not known.
    """
    if isinstance(cache, (tuple, list)):
        return 0 if len(cache) == 0 else int(_keys(cache).shape[-2])
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    if layers is not None and len(layers) > 0 and not any(hasattr(layer, "get_seq_length") for layer in layers):
        return state_of(layers, state, library)
    return int(cache.get_seq_length())


def length_at(cache: Any, layer: int, width: int, state: int | None, library: str) -> int:
    """The number of cached columns before a pass of `width` columns, at the time when block `layer` is about to run.

    The cache layers before `layer` already hold this pass; `layer` and those after it do not. A cache layer may hold no
    columns: it is not made yet, it shares an earlier layer's, or it keeps a state. Raises ValueError if the length is
    not known.
    """
    if isinstance(cache, (tuple, list)):
        return 0 if len(cache) == 0 else int(_keys(cache).shape[-2])
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    if layers is None:
        raise unread(
            {"cache": cache}, library, f"the number of cached tokens cannot be read from a {type(cache).__name__}"
        )
    counted = [cache_layer for cache_layer in layers[layer:] if hasattr(cache_layer, "get_seq_length")]
    if counted:
        return int(counted[0].get_seq_length())
    counted = [cache_layer for cache_layer in layers[:layer] if hasattr(cache_layer, "get_seq_length")]
    if counted:
        return int(counted[-1].get_seq_length()) - width
    return state_of(layers[layer:], state, library) if len(layers[layer:]) else 0


def state_of(layers: Any, state: int | None, library: str) -> int:
    """The number of columns seen by cache layers that keep a state: 0 while all are empty, else `state`.

    Raises ValueError if that is None, and if no layer says whether it is filled.
    """
    filled = [getattr(layer, "has_previous_state", None) for layer in layers]
    filled = [any(flag.values()) if isinstance(flag, dict) else flag for flag in filled]
    if any(isinstance(flag, bool) and flag for flag in filled):
        if state is None:
            raise unread(
                {},
                library,
                "the cache keeps a state and no columns, and was filled before the steering began, so the number of "
                "tokens in it is not known: fill it inside the block",
            )
        return state
    if any(not isinstance(flag, bool) for flag in filled if flag is not None) or all(flag is None for flag in filled):
        raise unread({}, library, f"no layer of the cache ({_kinds(layers)}) says how much it holds")
    return 0


def _covers(mask: Tensor, offset: int, width: int, cache: Any) -> bool:
    """Whether a mask [batch, columns] covers the cached and the present columns. With a cache of fixed size the mask
    may have that size."""
    if mask.shape[1] == offset + width:
        return True
    sizes = [getattr(layer, "max_cache_len", 0) for layer in getattr(cache, "layers", None) or ()]
    return mask.shape[1] > offset + width and mask.shape[1] in sizes


def _is_legacy(name: str, value: Any) -> bool:
    """Whether this is a tuple of keys and values [batch, head, pos, width], of one layer or of all."""
    if not isinstance(value, (tuple, list)) or "position" in name:
        return False
    if len(value) == 0:
        return "past" in name or "cache" in name
    keys = _keys(value)
    return isinstance(keys, Tensor) and keys.ndim == 4 and ("argument" in name or "past" in name or "cache" in name)


def _keys(cache: Any) -> Any:
    first = cache[0]
    return first[0] if isinstance(first, (tuple, list)) and len(first) > 0 else first


def _sounds_like_one(name: str, value: Any) -> bool:
    if "argument" in name and isinstance(value, (tuple, list)):  # by position: nested, as no other argument is
        return len(value) > 0 and isinstance(value[0], (tuple, list))
    words = f"{name} {type(value).__name__}".lower()
    return any(word in words for word in ("cache", "past", "mems", "ssm")) or name in ("state", "states")


def _kinds(layers: Any) -> str:
    return ", ".join(sorted({type(layer).__name__ for layer in layers}))
