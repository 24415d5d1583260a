"""The cache in a call of a model or of one of its blocks, and how many columns it holds.

A cache is found by what it is, since libraries rename the argument that carries it: Hugging Face's (dynamic, static,
sliding, quantised, of an encoder and a decoder, with states in place of columns) and tuples of keys and values. This
travels to remote servers, and works with plain values and torch alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odesteer_tl.portable.model_inputs import refuse_packed, unread

_PLAIN = (bool, int, float, str, Tensor)


def offset_in(given: dict[str, Any], width: int, state: Any, library: str) -> tuple[int, Any]:
    """How many columns come before a pass of `width` columns, by the cache in the call, and that cache.

    `given` are the arguments of the module that runs all blocks. `state(cache)`: how many columns a cache that keeps
    none (a state-space model's) has seen, or None where that is not known. Raises ValueError for a cache that cannot be
    read, and for a mask or a count that says another number.
    """
    refuse_packed(given, library)
    cache = cache_in(given, library)
    offset = 0 if cache is None else length_of(cache, state(cache), library)
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and not _covers(mask, offset, width, cache):
        raise unread(
            given,
            library,
            f"the cache holds {offset} columns and this pass has {width}, but the attention mask covers "
            f"{mask.shape[1]}: give it one entry per token, cached ones included, [batch, {offset + width}]",
        )
    return offset, cache


def cache_in(given: dict[str, Any], library: str) -> Any:
    """The cache among the arguments of a call, under whatever name; None where there is none.

    Raises ValueError where the only one is called or named a cache and has no length, and for two caches.
    """
    found: list[Any] = []
    unclear: list[str] = []
    for name, value in given.items():
        if value is None or isinstance(value, _PLAIN):
            continue
        if hasattr(value, "get_seq_length") or _is_legacy(name, value):
            found += [] if any(other is value for other in found) else [value]
        elif _sounds_like_one(name, value):
            unclear.append(f"{name}, a {type(value).__name__},")
    if unclear and not found:
        raise unread(given, library, f"the cache in {' and '.join(unclear)} does not say its length")
    if len(found) > 1:
        raise unread(given, library, f"{len(found)} caches are given, and which one counts is not known")
    return found[0] if found else None


def length_of(cache: Any, state: int | None, library: str) -> int:
    """Columns in a cache; of one that keeps a state and no columns, `state`, or 0 where it is empty.

    Raises ValueError where that is not known.
    """
    if isinstance(cache, (tuple, list)):
        return 0 if len(cache) == 0 else int(_keys(cache).shape[-2])
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    if layers is not None and len(layers) > 0 and not any(hasattr(kept, "get_seq_length") for kept in layers):
        return state_of(layers, state, library)
    return int(cache.get_seq_length())


def length_at(cache: Any, layer: int, width: int, state: int | None, library: str) -> int:
    """Columns before a pass of `width` columns in the cache of the block `layer`, whose turn it is.

    Layers before it, unlike it and those after it, hold this pass already. A layer may keep no columns: it has yet to
    be made, shares an earlier layer's, or keeps a state. Raises ValueError where the length is not known.
    """
    if isinstance(cache, (tuple, list)):
        return 0 if len(cache) == 0 else int(_keys(cache).shape[-2])
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    if layers is None:
        raise unread(
            {"cache": cache}, library, f"how many tokens are cached cannot be read from a {type(cache).__name__}"
        )
    counted = [kept for kept in layers[layer:] if hasattr(kept, "get_seq_length")]
    if counted:
        return int(counted[0].get_seq_length())
    counted = [kept for kept in layers[:layer] if hasattr(kept, "get_seq_length")]
    if counted:
        return int(counted[-1].get_seq_length()) - width
    return state_of(layers[layer:], state, library) if len(layers[layer:]) else 0


def state_of(layers: Any, state: int | None, library: str) -> int:
    """Columns behind the layers of a cache that keep a state: 0 while none has one, else what is known, `state`."""
    filled = [getattr(kept, "has_previous_state", None) for kept in layers]
    filled = [any(each.values()) if isinstance(each, dict) else each for each in filled]
    if any(isinstance(each, bool) and each for each in filled):
        if state is None:
            raise unread(
                {},
                library,
                "the cache keeps a state and no columns, and was filled before the steering began: how many tokens it "
                "has seen is not known; fill it inside the block",
            )
        return state
    if any(not isinstance(each, bool) for each in filled if each is not None) or all(each is None for each in filled):
        raise unread({}, library, f"no layer of the cache ({_kinds(layers)}) says how much it holds")
    return 0


def _covers(mask: Tensor, offset: int, width: int, cache: Any) -> bool:
    """Whether a mask [batch, columns] covers the cached columns and the present ones; a cache of fixed size may come
    with a mask of that size."""
    if mask.shape[1] == offset + width:
        return True
    sizes = [getattr(kept, "max_cache_len", 0) for kept in getattr(cache, "layers", None) or ()]
    return mask.shape[1] > offset + width and mask.shape[1] in sizes


def _is_legacy(name: str, value: Any) -> bool:
    """Whether this is a tuple of keys and values [batch, head, pos, width], of one layer or of each."""
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
    return ", ".join(sorted({type(kept).__name__ for kept in layers}))
